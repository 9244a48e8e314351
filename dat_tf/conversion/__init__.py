"""From archives and folders of images to TFRecords."""
