"""The flags of run_dat.py, room by room: what each means, its unit and its range."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from absl import flags

from dat_tf.config.methods import ATTACKS, OBJECTIVES

MODES = (
  "train",
  "evaluate",
  "train_and_evaluate",
  "pseudo_label",
  "export",
  "report",
)

EXPORT_FORMATS = ("keras", "serving", "tflite", "onnx")


class _NumberParser(flags.ArgumentParser):
  """A float that may be written as a fraction: 8/255."""

  syntactic_help = "a number or a fraction such as 8/255"

  def __init__(self, above: float, lower: float, upper: float, below: float):
    super().__init__()
    self._above, self._lower, self._upper, self._below = above, lower, upper, below

  @property
  def interval(self) -> str:
    left = f"({self._above:g}" if self._above >= self._lower else f"[{self._lower:g}"
    right = f"{self._below:g})" if self._below <= self._upper else f"{self._upper:g}]"
    return f"{left}, {right}"

  def flag_type(self) -> str:
    return "number"

  def parse(self, argument: Any) -> float:
    text = str(argument).replace(" ", "")
    numerator, slash, denominator = text.partition("/")
    try:
      if not text.isascii():
        raise ValueError
      value = float(numerator) / (float(denominator) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
      raise ValueError(f"{argument!r} is not {self.syntactic_help}") from None
    if not (self._above < value < self._below and self._lower <= value <= self._upper):
      raise ValueError(f"must lie in {self.interval}")
    return value


def _define_number(
  name: str,
  default: Any,
  help_text: str,
  above: float = float("-inf"),
  lower: float = 0.0,
  upper: float = float("inf"),
  below: float = float("inf"),
  **kwargs: Any,
) -> None:
  parser = _NumberParser(above, lower, upper, below)
  flags.DEFINE(
    parser,
    name,
    default,
    f"{help_text} Range {parser.interval}.",
    serializer=flags.ArgumentSerializer(),
    **kwargs,
  )


class _Room:
  """Defines flags that `--help` lists under a room of the package."""

  def __init__(self, name: str, values: flags.FlagValues):
    def bind(define: Callable[..., Any]) -> Callable[..., Any]:
      return functools.partial(define, module_name=f"dat_tf.{name}", flag_values=values)

    self.number = bind(_define_number)
    # TensorFlow counts in 32 bits at some places, and in 64 at the others.
    integer = functools.partial(flags.DEFINE_integer, upper_bound=2**31 - 1)
    self.integer = bind(integer)
    self.choice = bind(flags.DEFINE_enum)
    self.text = bind(flags.DEFINE_string)
    self.texts = bind(flags.DEFINE_list)
    self.switch = bind(flags.DEFINE_boolean)


# A flag a paragraph reads better than an argument a line.
# fmt: off
def define_flags(values: flags.FlagValues) -> None:
  """Defines all flags of run_dat.py in `values`."""
  run = _Room("training", values)
  run.choice("mode", "train_and_evaluate", MODES, "What to do.")
  run.text("model_dir", None, "Directory of everything that the run writes. Required.")
  run.switch(
      "overwrite", False,
      "Clear what an earlier run wrote in model_dir, and begin anew.")
  run.integer("epochs", 10, "Passes over the training data.", lower_bound=1)
  run.integer(
      "seed", 0, "Of weights, shuffling, augmentation and random starts.",
      lower_bound=0)
  run.integer(
      "evaluate_every", 0,
      "Epochs between evaluations while training, on validation_data or, without them, "
      "the test data; 0: none.",
      lower_bound=0)
  run.integer(
      "early_stopping", 0,
      "Evaluations on validation_data without a better robust accuracy after which "
      "training ends; the best weights are what is evaluated and exported. 0: none.",
      lower_bound=0)
  run.integer(
      "accumulation", 1,
      "Parts of a replica's batch that are trained on one after the other, to save "
      "memory.", lower_bound=1)
  run.switch(
      "jit_compile", False,
      "Compile attack and gradient with XLA, which drops the check that images stay in "
      "the ball.")
  run.choice(
      "precision", "float32", ("float32", "mixed_bfloat16"),
      "Of what layers compute; weights and losses are float32.")
  run.texts(
      "export_formats", [],
      "Forms in which --mode=export writes the network beside export/, a Keras model: "
      "keras (one file), serving (a SavedModel with a signature), tflite, onnx.")
  run.text(
      "initialize_from", None,
      "What the weights are before the first step: the model_dir of another run, an "
      "exported model, or imagenet (Keras' own, for networks of tf.keras.applications);"
      " with another number of classes the last layer starts anew.")
  run.switch(
      "unsafe_model", False,
      "Let a model of model_path, source_model_path or initialize_from run code of its "
      "own, which can do all that you can; only for models whose makers you trust.")
  run.integer(
      "checkpoints_to_keep", 2, "Number of newest checkpoints kept.", lower_bound=1)
  run.integer(
      "log_every", 20, "Steps between two points in TensorBoard.", lower_bound=1)
  run.integer(
      "pictures", 8, "Images in each epoch's picture grid in TensorBoard; 0: none.",
      lower_bound=0, upper_bound=64)

  data = _Room("data", values)
  data.text(
      "train_data", None,
      "TFRecords to train on: a pattern of file names, in which *, ? and [ ] stand for"
      " others, or several separated by commas.")
  data.text("test_data", None, "TFRecords to evaluate on, likewise.")
  data.text(
      "validation_data", None,
      "TFRecords that neither train nor test, for evaluate_every and early_stopping.")
  data.integer("num_classes", 10, "Classes of the labels.", lower_bound=2)
  data.choice(
      "first_label", "auto", ("auto", "0", "1"),
      "Number of the first class in the records; auto: 1 in ImageNet's form, else 0.")
  data.integer(
      "global_batch_size", 128,
      "Images of one step on all workers together; a multiple of the replicas.",
      lower_bound=1)
  data.integer(
      "shuffle_buffer", 10_000,
      "Records that each worker shuffles among; 0: the order of the files.",
      lower_bound=0)
  data.choice(
      "augmentation", "none", ("none", "pad_crop_flip", "random_resized_crop"),
      "pad_crop_flip: shift by up to 4 pixels, and mirror half of the images; "
      "random_resized_crop: cut out a random part, and mirror half. Of training only.")
  data.integer(
      "image_size", None,
      "Pixels of either side, to which images of any size are brought: their middle,"
      " or what random_resized_crop cuts out. Default: images of one size stay so.",
      lower_bound=1)
  data.choice(
      "channels", "auto", ("auto", "3"),
      "3: grey images become RGB. auto: so they do if any of the first 200 is in color;"
      " if none is, one that comes later ends the run.")
  data.switch(
      "data_is_local", False,
      "Each worker trains on all files that its own pattern matches, which no other "
      "worker has, instead of on a share of common files. Test data are common files.")
  data.integer(
      "skip_bad_records", 0,
      "Most records with a wrong checksum, on all workers together, that are left out; "
      "to find them, all files are read once before the first step.",
      lower_bound=0)
  data.text(
      "data_service", None,
      "HOST:PORT of a tf.data service that reads, decodes and augments labelled images "
      "to train on (python -m dat_tf.data.service); their order is left to chance.")
  data.text(
      "unlabeled_data", None,
      "TFRecords without labels, or with pseudo-labels: to train on beside labelled "
      "ones, or for --mode=pseudo_label; patterns as for train_data.")
  data.number(
      "unlabeled_fraction", 0.5, "Part of each batch that is unlabelled.",
      above=0, below=1)

  model = _Room("models", values)
  model.text(
      "model", "small_cnn",
      "small_cnn, plain_cnn, preact_resnet18, wide_resnet28_10, wide_resnet34_10 (or "
      "with _swish), imagenet_resnet18, imagenet_resnet50, denoising_resnet18, "
      "denoising_resnet50, vit_small16, a network of tf.keras.applications by name, or "
      "your own as package.module:function.")
  model.choice(
      "weight_average", "none", ("none", "exponential", "stochastic"),
      "Average of the weights over training, which is what is evaluated and exported; "
      "stochastic: the mean of those at the end of each epoch.")
  model.number(
      "average_decay", 0.995, "Of the exponential average, a step.", above=0, below=1)
  model.number(
      "average_from_epoch", 0.0, "Epochs that go before the first that counts.")

  attack = _Room("attacks", values)
  attack.choice(
      "attack", "pgd", tuple(ATTACKS),
      "How training images are attacked; none trains on clean images. nfgsm: one step "
      "from strong noise; bim: pgd from the image itself; dynamic_pgd: until it has "
      "converged well enough; warm_start_pgd: from where it ended an epoch before;"
      " wrm: with a price on the distance; free, yopo: while the weights are trained.")
  attack.choice(
      "norm", "linf", ("linf", "l2", "l1"), "Norm that bounds the perturbation.")
  attack.number(
      "epsilon", 8 / 255,
      "Largest norm of the perturbation, for pixels in [0, 1]; at most 1 for linf.",
      above=0)
  attack.number(
      "step_size", None,
      "Length of an attack's step in training, in units of pixels in [0, 1]. Default: "
      "2.5 epsilon / attack_steps; 1.25 epsilon for fgsm, epsilon for free and for "
      "the objective llr, a quarter of it for yopo.", above=0)
  attack.integer(
      "attack_steps", None,
      "Steps of the attack in training; for free, how often it trains on each batch; "
      "for yopo, passes through the whole network. Default: 10; 15 for wrm, 8 for free,"
      " 5 for yopo.",
      lower_bound=1)
  attack.integer(
      "inner_steps", 3, "Of yopo: steps through the first layer in each pass.",
      lower_bound=1)
  attack.number(
      "convergence", 0.5,
      "Of dynamic_pgd: criterion, in nats, at which an attack stops early, at first;"
      " it falls to 0 over five sixths of training.")
  attack.number(
      "wasserstein_penalty", 0.385,
      "gamma, of wrm: price of a squared distance, pixels in [0, 1].", above=0)
  attack.number(
      "steps_growing_epochs", 0.0,
      "Epochs in which pgd's steps grow from 1 to attack_steps.")
  attack.number(
      "epsilon_growing_epochs", 0.0,
      "Epochs in which epsilon, of pgd or of certified training, grows to its value.")
  attack.integer(
      "evaluation_attack_steps", 20, "Steps of pgd in evaluation.", lower_bound=1)
  attack.number(
      "evaluation_step_size", None,
      "Length of a step in evaluation by pgd, in units of pixels in [0, 1]. Default: "
      "2.5 epsilon / evaluation_attack_steps. Those of --attacks have their own.",
      above=0)
  attack.switch(
      "attack_in_training_mode", False,
      "Attack with batch-norm in training mode instead of inference mode.")

  evaluation = _Room("evaluation", values)
  evaluation.texts(
      "attacks", [],
      "Attacks of evaluation instead of pgd, such as autoattack,pgd-50x10: apgd-ce, "
      "apgd-dlr, apgd-t, fab, fab-t, square, autoattack, autoattack-plus, "
      "autoattack-rand, deepfool, fgsm, pgd-K, pgd-KxR, cw-pgd-K, bim-K, mi-fgsm-K; in"
      " l1 and l2 jsma; in l2 ddn, cw-l2, l-bfgs; any of them, made on another model,"
      " as transfer-NAME.")
  evaluation.integer(
      "evaluation_examples", 0, "First test images, which attacks are run on; 0: all.",
      lower_bound=0)
  evaluation.integer(
      "probe_images", 200,
      "First test images, on which it is probed whether attacks can be trusted; 0: "
      "none.", lower_bound=0)
  evaluation.text(
      "model_path", None,
      "A Keras model or SavedModel to evaluate instead of the run's own.")
  evaluation.texts(
      "input_range", ["0", "1"],
      "Black and white as that model takes them, as in 0,255.")
  evaluation.switch(
      "logits", None, "That model gives logits; the default.")
  evaluation.switch(
      "probabilities", False, "That model gives probabilities instead of logits.")
  evaluation.text(
      "source_model_path", None,
      "A Keras model or SavedModel on which the attacks transfer-NAME are made.")
  evaluation.texts(
      "source_input_range", ["0", "1"], "Black and white as the source takes them.")
  evaluation.switch(
      "source_probabilities", False,
      "The source gives probabilities instead of logits.")

  objective = _Room("objectives", values)
  objective.choice(
      "objective", "at", tuple(OBJECTIVES),
      "What is minimised. at: clean and adversarial cross-entropy; trades; mart; alp, "
      "clp: adversarial or clean logit pairing; input_gradient: its square; cure: "
      "curvature; llr: local linearity; ig_norm: attributions; ibp, crown_ibp: bounds"
      " that certify.")
  objective.number(
      "clean_weight", 1.0,
      "lambda, weight of the clean loss beside the adversarial one, of at and alp.")
  objective.number(
      "penalty_weight", None,
      "Weight of the term that gives the objective its name. Default: trades 6, mart 5,"
      " clp 0.5, cure and llr 4, alp, input_gradient and ig_norm 1.")
  objective.integer(
      "attribution_points", 50,
      "Of ig_norm: points between an image and its adversarial one, each a pass through"
      " the network; its attack takes 10 at most.", lower_bound=1)
  objective.number(
      "pairing_noise", 0.5,
      "Of clp: standard deviation of the noise on its images, pixels in [0, 1]; 0.5 is"
      " for MNIST.")
  objective.number(
      "curvature_step", 1.5,
      "h, of cure: Euclidean length of the step over which gradients are compared,"
      " pixels in [0, 1].", above=0)
  objective.number(
      "certified_clean_weight", 0.5,
      "kappa, of ibp and crown_ibp: last weight of the clean loss beside that at the"
      " bounds.", upper=1)
  objective.number(
      "gradient_alignment", 0.0,
      "Weight of GradAlign, which keeps one-step attacks from catastrophic overfitting;"
      " 0.2 is its authors' for epsilon 8/255 on CIFAR-10.")
  objective.number(
      "weight_perturbation", 0.0,
      "gamma of AWP: weights are attacked too, up to this part of their norm; 0: not.")
  objective.number(
      "label_smoothing", 0.0,
      "Part of a label that is spread evenly over all classes.", below=1)
  objective.choice(
      "mixing", "none", ("none", "mixup", "cutmix"),
      "Whether an image is mixed with another one, and their labels likewise.")
  objective.number(
      "mixing_alpha", 1.0, "Of the beta distribution that parts are drawn from.",
      above=0)
  objective.choice(
      "unlabeled_loss", "pseudo_label", ("pseudo_label", "consistency", "both"),
      "Of unlabelled images. pseudo_label: as of labelled ones; consistency: divergence"
      " of the adversarial prediction from the clean one; both: their sum.")
  objective.number(
      "unlabeled_weight", 1.0, "Weight of an unlabelled image beside a labelled one.")
  objective.number(
      "consistency_growing_epochs", 10.0,
      "Epochs in which the weight of consistency grows from 0 to its value.")
  objective.number(
      "pseudo_label_smoothing", 0.0,
      "Part of a pseudo-label that is spread evenly over all classes.", below=1)

  labeling = _Room("pseudo_labeling", values)
  labeling.text(
      "pseudo_label_dir", None,
      "Directory that --mode=pseudo_label writes to: a file for each that it reads.")
  labeling.choice(
      "pseudo_labels", "hard", ("hard", "soft"),
      "hard: the likeliest class; soft: the probabilities of all classes.")
  labeling.number(
      "confidence_threshold", 0.0,
      "Smallest probability of the likeliest class for which a pseudo-label is given.",
      upper=1)

  optimizer = _Room("optimizers", values)
  optimizer.choice("optimizer", "lamb", ("lamb", "lars", "sgd"), "Update rule.")
  optimizer.number(
      "learning_rate", 0.01, "Peak learning rate at reference_batch_size.", above=0)
  optimizer.integer(
      "reference_batch_size", None,
      "Images a step for which learning_rate is stated. Default: global_batch_size.",
      lower_bound=1)
  optimizer.choice(
      "learning_rate_scaling", "linear", ("linear", "sqrt"),
      "How the rate grows from reference_batch_size to global_batch_size.")
  optimizer.number(
      "layer_decay", 1.0,
      "Each layer's learning rate is this times that of the layer above it; 0: only"
      " the last layer is trained.", upper=1)
  optimizer.number(
      "clip_norm", None,
      "Longest gradient of a replica, before it is averaged with others. Default: any.",
      above=0)
  optimizer.number("warmup_epochs", 0.0, "Epochs of linear warm-up.")
  optimizer.choice(
      "decay", "cosine", ("constant", "step", "cosine"),
      "Course of the rate after the warm-up; step: times 0.1 at decay_epochs.")
  optimizer.texts(
      "decay_epochs", [], "Epochs at which decay=step multiplies the rate by 0.1.")
  optimizer.number("weight_decay", 1e-4, "Of weights, not of biases or batch-norm.")
  optimizer.number("momentum", 0.9, "Of sgd and lars.", upper=1.0)
  optimizer.number("beta_1", 0.9, "Of lamb: decay of the gradient's mean.", below=1.0)
  optimizer.number(
      "beta_2", 0.999, "Of lamb: decay of the squared gradient's mean.", below=1.0)
  optimizer.number(
      "min_weight_norm", 0.0,
      "c_l: a layer's norm counts as at least this in lamb's and lars' trust ratio.")
  optimizer.number(
      "max_weight_norm", 10.0,
      "c_u: a layer's norm counts as at most this in lamb's and lars' trust ratio.")

  communication = _Room("communication", values)
  communication.choice(
      "communication", "auto", ("auto", "ring", "nccl"),
      "Collectives between workers: ring is gRPC, nccl needs GPUs.")
  communication.choice(
      "all_reduce", "fp32", ("auto", "fp32", "fp16", "one_sided", "two_sided"),
      "How gradients are averaged. one_sided: they travel as quantized codes; "
      "two_sided: so does their mean; auto: two_sided if it is faster than fp32 here.")
  communication.choice("bits", "8", ("2", "4", "8"), "Of a quantized value, and sign.")
  communication.integer(
      "bucket_size", 1024,
      "Values quantized with one scale: a multiple of 256 / bits.", lower_bound=1)
  communication.choice(
      "quantization_scale", "largest", ("largest", "l2_norm"),
      "What a bucket's levels are multiples of: its largest magnitude, or its norm.")
  communication.switch(
      "error_feedback", False,
      "Round to the nearest level, and add what is lost to the next step's gradient.")
  communication.integer(
      "full_precision_below", 1024,
      "Tensors of fewer values than this travel in fp32, as vectors always do.",
      lower_bound=0)
  communication.text(
      "full_precision_names", "",
      "So do tensors in whose name this regular expression is found.")
  communication.integer(
      "bytes_per_pack", 0,
      "Bytes of gradient that are reduced together; 0: 4 MiB, or 16 MiB if quantized.",
      lower_bound=0)
  communication.number(
      "collective_timeout", 600.0,
      "Seconds after which a step that waits for other workers ends the run.", above=0)
  communication.number(
      "start_timeout", 3600.0,
      "Seconds that a worker waits at the start until all others answer.", above=0)

  reporting = _Room("reporting", values)
  reporting.texts(
      "runs", [],
      "model_dirs of other runs that the report shows beside this one; --mode=report "
      "takes one without a run too.")
  reporting.texts(
      "profile_steps", [],
      "FIRST,LAST: steps of this start, from 1 on, that the chief records for "
      "TensorBoard's profiler.")
# fmt: on
