"""Labelled images: TFRecord files, augmentation, and the pipeline to batches."""
