"""Each network on two real workers, with quantized gradients."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from dat_tf.adversarial_model import AdversarialModel
from dat_tf.attacks import LInfinity, fgsm
from dat_tf.communication import BucketQuantizer, QuantizedAllReduce
from dat_tf.models import make_model
from dat_tf.optimizers import LAMB
from dat_tf.workers import cluster as cluster_lib
from dat_tf.workers import joined
from workers import run_workers

SHAPE, SIZE, CLASSES = (32, 32, 3), 4, 3
NETWORKS = (  # the others differ in depth or activation
  "small_cnn",
  "plain_cnn",
  "vit_small16",
  "MobileNetV2",
  "preact_resnet18",
  "denoising_resnet18",
  "imagenet_resnet50",
  "wide_resnet28_10_swish",
)


def _train_each():
  """{network: loss after two steps, and of each weight a part, before and after}."""
  cluster = cluster_lib.Cluster.from_environment()
  options = joined.communication_options("ring", 0, 600)
  strategy = joined.join(cluster, options).strategy
  rng = np.random.default_rng(0)
  images, labels = rng.random((SIZE, *SHAPE), "f4"), rng.integers(0, CLASSES, SIZE)
  data = tf.data.Dataset.from_tensor_slices((images, labels)).repeat(2)
  data = data.batch(SIZE, drop_remainder=True)
  found = {}
  for name in NETWORKS:
    tf.keras.utils.set_random_seed(cluster.index)  # the chief's weights must win
    with strategy.scope():
      classifier = make_model(name, SHAPE, CLASSES)
      all_reduce = QuantizedAllReduce(BucketQuantizer(8))
      attack = fgsm(LInfinity(8 / 255))
      model = AdversarialModel(classifier, attack, all_reduce=all_reduce)
      model.compile(optimizer=LAMB(0.01))
    weights = classifier.trainable_variables
    before = [w.numpy().ravel()[:1000] for w in weights]
    history = model.fit(data, verbose=0).history
    found[name] = {
      "loss": history["loss"][0],
      "before": before,
      "after": [w.numpy().ravel()[:1000] for w in weights],
      "sums": [w.numpy().sum(dtype="f8") for w in weights],
    }
    tf.keras.backend.clear_session()
  return found


@pytest.mark.long
class NetworksTest(tf.test.TestCase):
  def test_each_trains_two_workers_alike(self):
    first, second = run_workers(_train_each, 2)
    for name in NETWORKS:
      with self.subTest(name):
        mine, theirs = first[name], second[name]
        self.assertTrue(np.isfinite(mine["loss"]))
        self.assertEqual(mine["loss"], theirs["loss"])
        self.assertEqual(mine["sums"], theirs["sums"])
        for parts in zip(mine["after"], theirs["after"]):
          self.assertAllEqual(*parts)
        moved = [np.any(a != b) for a, b in zip(mine["before"], mine["after"])]
        self.assertGreater(np.mean(moved), 0.9)


if __name__ == "__main__":
  tf.test.main()
