"""The peers of benchmarks/attacks.py, which runs this in the peers' own environment.

    python attack_peers.py time|accuracy MODEL IN.npz OUT.json LINF L2 ATTACK...

`time` writes as `seconds` the time of the attacks, each on what those before it left;
`accuracy`, by attack, as `norms` that of each image's perturbation, 0 where the image
is misclassified as it is, 1e9 where the attack failed, and as `names` who made it.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Callable

import numpy as np
import tensorflow as tf

FAILED = 1e9
PART, MODEL, IN, OUT = sys.argv[1:5]
LINF, SQUARED = (float(number) for number in sys.argv[5:7])
NAMES = sys.argv[7:]


def main() -> None:
  data = np.load(IN)
  images, labels = data["images"], data["labels"].astype(np.int64)
  model = tf.keras.models.load_model(MODEL, compile=False)
  predict = tf.function(lambda x: model(x, training=False))
  classes = predict(images[:1]).shape[1]

  from art.attacks.evasion import AutoProjectedGradientDescent, SquareAttack
  from art.estimators.classification import TensorFlowV2Classifier

  art = TensorFlowV2Classifier(
    model=lambda x, training=False: predict(tf.cast(x, tf.float32)),
    nb_classes=classes,
    input_shape=images.shape[1:],
    loss_object=tf.keras.losses.CategoricalCrossentropy(from_logits=True),
    clip_values=(0.0, 1.0),
  )

  def correct(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return predict(x).numpy().argmax(axis=1) == y

  def norms(adversarial: Any, x: np.ndarray, y: np.ndarray, order: float) -> np.ndarray:
    adversarial = np.asarray(adversarial, np.float32)
    norm = np.linalg.norm((adversarial - x).reshape(len(x), -1), order, axis=1)
    return np.where(correct(adversarial, y), FAILED, norm)

  def apgd(loss: str, *, targeted: bool = False) -> Any:
    return AutoProjectedGradientDescent(
      art, np.inf, LINF, 2 * LINF, 100, targeted, 1, 128, loss, verbose=False
    )

  def one_hot(y: np.ndarray) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[y]

  def apgd_ce(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return apgd("cross_entropy").generate(x, one_hot(y))

  def apgd_dlr(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return apgd("difference_logits_ratio").generate(x, one_hot(y))

  def apgd_t(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    best, attack = x.copy(), apgd("difference_logits_ratio", targeted=True)
    order = np.argsort(-predict(x).numpy(), axis=1)
    for rank in range(1, classes):
      left = np.flatnonzero(correct(best, y))
      if len(left):
        best[left] = attack.generate(x[left], one_hot(order[left, rank]))
    return best

  def square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    attack = SquareAttack(
      art, np.inf, max_iter=5000, eps=LINF, p_init=0.8, nb_restarts=1, verbose=False
    )
    return attack.generate(x, one_hot(y))

  def foolbox_attack(attack: Any, epsilon: Any) -> Callable[..., np.ndarray]:
    def run(x: np.ndarray, y: np.ndarray) -> np.ndarray:
      import foolbox

      wrapped = foolbox.TensorFlowModel(model, bounds=(0, 1))
      parts = [
        attack(
          wrapped,
          tf.constant(x[i : i + 128]),
          tf.constant(y[i : i + 128]),
          epsilons=epsilon,
        )[1].numpy()
        for i in range(0, len(x), 128)
      ]
      return np.concatenate(parts)

    return run

  def cleverhans_pgd(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    from cleverhans.tf2.attacks.projected_gradient_descent import (
      projected_gradient_descent,
    )

    return projected_gradient_descent(
      model,
      x,
      LINF,
      2.5 * LINF / 40,
      40,
      np.inf,
      clip_min=0.0,
      clip_max=1.0,
      y=y,
      rand_init=True,
      rand_minmax=LINF,
    ).numpy()

  import foolbox

  pgd = foolbox.attacks.LinfPGD(abs_stepsize=2.5 * LINF / 40, steps=40)
  attacks = {
    "apgd_ce": ("ART", np.inf, apgd_ce),
    "apgd_dlr": ("ART", np.inf, apgd_dlr),
    "apgd_t": ("ART", np.inf, apgd_t),
    "square": ("ART", np.inf, square),
    "pgd_foolbox": ("Foolbox", np.inf, foolbox_attack(pgd, LINF)),
    "pgd_cleverhans": ("CleverHans", np.inf, cleverhans_pgd),
    "ddn": ("Foolbox", 2, foolbox_attack(foolbox.attacks.DDNAttack(steps=100), None)),
    "deepfool": (
      "Foolbox",
      2,
      foolbox_attack(foolbox.attacks.L2DeepFoolAttack(steps=50), None),
    ),
  }
  right = correct(images, labels)
  results: dict[str, Any] = {"names": {}, "norms": {}}
  if PART == "time":
    chain = np.where(right, FAILED, 0.0)
    started = time.perf_counter()
    for name in NAMES:
      left = np.flatnonzero(chain == FAILED)
      if not len(left):
        break
      _, order, run = attacks[name]
      x, y = images[left], labels[left]
      chain[left] = norms(run(x, y), x, y, order)
      print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    results["seconds"] = time.perf_counter() - started
  else:
    x, y = images[right], labels[right]
    for name in NAMES:
      peer, order, run = attacks[name]
      norm = np.zeros(len(right))
      norm[right] = norms(run(x, y), x, y, order)
      results["names"][name], results["norms"][name] = peer, norm.tolist()
      print(f"{name}: {peer}, {np.mean(norm >= FAILED):.1%} unbroken", flush=True)
  with open(OUT, "w", encoding="utf-8") as file:
    json.dump(results, file)


if __name__ == "__main__":
  main()
