"""A linear classifier, whose smallest perturbations are known.

The distance to the boundary of another class is the difference of the logits over the
dual norm of the difference of the weights, as long as the perturbation keeps to [0, 1].
"""

import numpy as np
import tensorflow as tf

from dat_tf.attacks import L1, L2, LInfinity, make_attacks
from dat_tf.evaluation import Evaluator

CLASSES = 5
DUAL = {LInfinity: 1, L2: 2, L1: np.inf}


class Linear:
  """A linear classifier and images far from the ends of the range and each other."""

  def __init__(
    self, near_classes=CLASSES, shape=(5, 5, 1), count=30, num_classes=CLASSES
  ):
    """The other classes are out of reach."""
    rng = np.random.default_rng(0)
    self.shape, size = shape, np.prod(shape)
    self.weights = rng.normal(size=(size, num_classes)).astype("f4")
    self.images = rng.uniform(0.4, 0.6, (400, *shape)).astype("f4")
    flat = self.images.reshape(len(self.images), -1)
    self.bias = -(flat @ self.weights).mean(axis=0)
    self.bias[near_classes:] -= 30.0
    logits = flat.astype("f8") @ self.weights + self.bias
    self.labels = logits.argmax(axis=1)
    self.margins = np.take_along_axis(logits, self.labels[:, None], 1) - logits
    # Far enough from the boundary, and not so far that [0, 1] ends before it.
    distances = self.distances(L2)
    kept = np.flatnonzero((distances > 0.03) & (distances < 0.15))[:count]
    self.images, self.labels = self.images[kept], self.labels[kept]
    self.margins = self.margins[kept]
    self.ids = 100 + np.arange(len(kept))

  def __call__(self, images):
    return tf.reshape(images, [-1, np.prod(self.shape)]) @ self.weights + self.bias

  def distances(self, ball):
    """float64 [N]."""
    weights = self.weights.T.astype("f8")
    differences = weights[self.labels][:, None] - weights[None]
    norms = np.linalg.norm(differences, ord=DUAL[ball], axis=2)
    with np.errstate(invalid="ignore"):
      return np.nanmin(self.margins / norms, axis=1)

  def epsilon(self, ball):
    """A radius in the widest gap between the middle distances."""
    ordered = np.sort(self.distances(ball))
    low, high = len(ordered) // 3, 2 * len(ordered) // 3
    gap = low + np.argmax(ordered[low + 1 : high] / ordered[low : high - 1])
    return float(np.sqrt(ordered[gap] * ordered[gap + 1]))

  def evaluate(self, ball, name):
    return self.attacked(*make_attacks(name, ball).values())

  def attacked(self, *attacks):
    evaluator = Evaluator(self, {"attack": attacks}, batch_size=8)
    _, outcomes = evaluator(self.images, self.labels, self.ids)
    return outcomes["attack"]


def norms_of(ball, perturbation):
  flat = perturbation.reshape(len(perturbation), -1).astype("f8")
  order = {LInfinity: np.inf, L2: 2, L1: 1}[type(ball)]
  return np.linalg.norm(flat, ord=order, axis=1)
