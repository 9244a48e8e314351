"""Which attacks and objectives go together, by flags, and their defaults."""

from __future__ import annotations

from absl.testing import absltest, parameterized
from config_case import needs

from dat_tf import config as config_lib
from dat_tf.base.errors import UserError


def parse(**values):
  given = {"model_dir": "m", "train_data": "a", "test_data": "b", **values}
  return config_lib.parse(["run_dat.py", *(f"--{n}={v}" for n, v in given.items())])


def pairs(attacks, objectives):
  return {(attack, objective) for attack in attacks for objective in objectives}


# Written out from the methods' definitions, not from the table under test. A method
# that is not in it is taken or refused as its record says.
ATTACKED = pairs(
  ["fgsm", "nfgsm", "bim", "pgd", "momentum_pgd", "dynamic_pgd", "warm_start_pgd"]
  + ["wrm", "free", "yopo"],
  ["at", "trades", "mart", "alp"],
)
VALID = (
  ATTACKED - pairs(["bim", "wrm", "free"], ["trades"])
  | pairs(["none"], ["at", "clp", "input_gradient", "cure", "ibp", "crown_ibp"])
  | pairs(["pgd"], ["llr", "ig_norm"])
)
WRITTEN_OUT = tuple({names[i] for names in VALID} for i in (0, 1))

IBP = {"objective": "ibp", "attack": "none"}


class PairsTest(parameterized.TestCase):
  def refused(self, **values):
    with self.assertRaises(UserError) as caught:
      parse(**values)
    message = str(caught.exception)
    self.assertLen(message.splitlines(), 1)
    return message

  @parameterized.parameters(
    *sorted(pairs(config_lib.ATTACKS, config_lib.OBJECTIVES)),
  )
  def test_a_pair_is_taken_or_refused_with_a_way_out(self, attack, objective):
    given = needs(config_lib.OBJECTIVES[objective])
    given |= {"attack": attack, "objective": objective}
    try:
      parse(**given)
      taken = True
    except UserError:
      taken = False
      message = self.refused(**given)
      self.assertIn(f"--objective={objective}", message)
      self.assertRegex(message, "choose|add")
    if attack in WRITTEN_OUT[0] and objective in WRITTEN_OUT[1]:
      self.assertEqual(taken, (attack, objective) in VALID)

  def test_each_method_goes_with_another(self):
    for attack in config_lib.ATTACKS:
      parse(attack=attack)
    for objective, record in config_lib.OBJECTIVES.items():
      parse(objective=objective, **needs(record))

  @parameterized.parameters(
    ("attack_steps", {"attack": "fgsm", "attack_steps": 2}),
    ("attack_steps", {"attack": "nfgsm", "attack_steps": 2}),
    ("step_size", {"attack": "nfgsm", "step_size": 0.01}),
    ("norm", {"attack": "nfgsm", "norm": "l2"}),
    ("step_size", {"attack": "wrm", "step_size": 0.01}),
    ("penalty_weight", {"penalty_weight": 1}),
    ("clean_weight", {"objective": "trades", "clean_weight": 2}),
    (
      "gradient_alignment",
      {"objective": "cure", "attack": "none", "gradient_alignment": 1},
    ),
    ("gradient_alignment", {"attack": "none", "gradient_alignment": 1}),
    ("gradient_alignment", {"attack": "yopo", "gradient_alignment": 1}),
    ("mixing", {**IBP, "epsilon_growing_epochs": 1, "mixing": "mixup"}),
    ("attack_steps", {"attack": "yopo", "attack_steps": 1}),
    ("norm", {"objective": "ibp", "attack": "none", "norm": "l2"}),
    (
      "precision",
      {"objective": "ibp", "attack": "none", "precision": "mixed_bfloat16"},
    ),
    ("epsilon_growing_epochs", {"objective": "ibp", "attack": "none"}),
    ("jit_compile", {"jit_compile": "true", "weight_perturbation": 0.01}),
    ("jit_compile", {"jit_compile": "true", "attack": "warm_start_pgd"}),
    ("steps_growing_epochs", {"attack": "yopo", "steps_growing_epochs": 1}),
    ("epsilon_growing_epochs", {"attack": "fgsm", "epsilon_growing_epochs": 1}),
    ("steps_growing_epochs", {"objective": "llr", "steps_growing_epochs": 1}),
    (
      "steps_growing_epochs",
      {
        **{"objective": "ibp", "attack": "none"},
        **{"epsilon_growing_epochs": 1, "steps_growing_epochs": 1},
      },
    ),
    (
      "epsilon_growing_epochs",
      {**IBP, "epsilon_growing_epochs": 9, "epochs": 10},
    ),
    ("epsilon_growing_epochs", {"epsilon_growing_epochs": 11, "epochs": 10}),
    ("steps_growing_epochs", {"steps_growing_epochs": 11, "epochs": 10}),
    ("accumulation", {"attack": "free", "accumulation": 2}),
    ("accumulation", {"attack": "yopo", "accumulation": 2}),
    ("attack_in_training_mode", {"attack": "yopo", "attack_in_training_mode": 1}),
    ("attack_in_training_mode", {"attack": "none", "attack_in_training_mode": 1}),
    ("augmentation", {"attack": "warm_start_pgd", "augmentation": "pad_crop_flip"}),
    ("mixing", {"attack": "warm_start_pgd", "mixing": "mixup"}),
    ("data_service", {"attack": "warm_start_pgd", "data_service": "host:5050"}),
    ("attack_precision", {"attack": "wrm", "attack_precision": "bfloat16"}),
    ("attack_precision", {"attack": "free", "attack_precision": "bfloat16"}),
    ("attack_precision", {"attack": "none", "attack_precision": "bfloat16"}),
    ("attack_precision", {"objective": "llr", "attack_precision": "bfloat16"}),
    ("attack_precision", {"objective": "ig_norm", "attack_precision": "bfloat16"}),
    (
      "attack_precision",
      {"attack_in_training_mode": "true", "attack_precision": "bfloat16"},
    ),
    (
      "attack_precision",
      {"precision": "mixed_bfloat16", "attack_precision": "bfloat16"},
    ),
    ("layer_decay", {"layer_decay": 0}),
    ("layer_decay", {"attack": "yopo", "layer_decay": 0, "initialize_from": "r"}),
    ("unlabeled_data", {"objective": "trades", "unlabeled_data": "u"}),
    ("unlabeled_data", {"gradient_alignment": 1, "unlabeled_data": "u"}),
    *(
      ("unlabeled_loss", {"attack": attack, "unlabeled_data": "u", **loss})
      for attack in ("none", "bim", "wrm", "free")
      for loss in ({"unlabeled_loss": "consistency"}, {"unlabeled_loss": "both"})
    ),
  )
  def test_settings_that_mean_nothing_together(self, name, values):
    self.assertIn(f"--{name}", self.refused(**values))

  @parameterized.parameters(
    ({"convergence": 0.3}, "--attack=pgd", "--attack=dynamic_pgd"),
    ({"inner_steps": 2}, "--attack=pgd", "--attack=yopo"),
    ({"wasserstein_penalty": 1}, "--attack=pgd", "--attack=wrm"),
    ({"attack": "none", "attack_steps": 3}, "--attack=none", "another --attack"),
    ({"attack": "none", "step_size": 0.1}, "--attack=none", "another --attack"),
    ({"attribution_points": 5}, "--objective=at", "--objective=ig_norm"),
    ({"pairing_noise": 0.1}, "--objective=at", "--objective=clp"),
    ({"mixing_alpha": 0.3}, "--mixing=none", "--mixing=mixup or cutmix"),
    ({"average_decay": 0.9}, "--weight_average=none", "exponential"),
    ({"momentum": 0.8}, "--optimizer=lamb", "--optimizer=lars or sgd"),
    ({"optimizer": "sgd", "beta_1": 0.8}, "--optimizer=sgd", "--optimizer=lamb"),
    ({"optimizer": "sgd", "max_weight_norm": 9}, "--optimizer=sgd", "lamb or lars"),
    ({"bits": 2}, "--all_reduce=fp32", "two_sided"),
    ({"quantization_scale": "l2_norm"}, "--all_reduce=fp32", "two_sided"),
    ({"all_reduce": "fp16", "bits": 2}, "--all_reduce=fp16", "two_sided"),
    ({"decay_epochs": 5}, "--decay=cosine", "--decay=step"),
    ({"unlabeled_weight": 2}, "--unlabeled_weight", "--unlabeled_data"),
    ({"pseudo_label_smoothing": 0.1}, "no part", "--unlabeled_data"),
    (
      {"attack": "free", "epsilon_growing_epochs": 1},
      "--objective=at and --attack=free",
      "--objective=ibp or crown_ibp or --attack=bim or pgd",
    ),
  )
  def test_settings_that_play_no_part(self, values, chosen, way):
    message = self.refused(**values)
    self.assertIn(f"--{[*values][-1]}", message)
    self.assertIn(chosen, message)
    self.assertIn(way, message)

  def test_what_follows_may_be_written_out(self):
    """As config.flags had it, whatever was chosen."""
    parse(attack="none", epsilon=0.2, attack_steps=1, step_size=0.5)
    parse(attack="nfgsm", epsilon=0.2, attack_steps=1, step_size=0.2)
    parse(attack="wrm", attack_steps=15)

  def test_no_way_out_that_is_refused_in_turn(self):
    for values in (
      {**IBP, "epsilon_growing_epochs": 2, "steps_growing_epochs": 1},
      {"objective": "clp", "attack": "none", "attack_steps": 5},
      {"objective": "llr", "inner_steps": 5},
    ):
      self.assertEndsWith(self.refused(**values), "drop it.")

  def test_without_training_nothing_unlabeled_is_missed(self):
    parse(mode="evaluate", unlabeled_fraction=0.25, pseudo_label_smoothing=0.1)

  def test_a_users_own(self):
    config = parse(attack="config_case:own_attack", objective="config_case:own")
    self.assertEqual((config.attack_steps, config.step_size), (10, config.epsilon / 4))
    trained = config_lib.Trained("network", (8, 4, 4, 1), 20)
    self.assertEqual(config_lib.make_attack(config, trained), (config, trained))
    self.assertEqual(config_lib.make_objective(config, 20), (config, 20))
    parse(attack="none", objective="config_case:own")
    for name in ("config_case:absent", "no.such:attack", ".x:f", "config_case:OTHER"):
      for make, flag in (
        (lambda c: config_lib.make_attack(c, trained), "attack"),
        (lambda c: config_lib.make_objective(c, 20), "objective"),
      ):
        with self.assertRaises(UserError) as caught:
          make(parse(**{flag: name}))
        self.assertIn(f"--{flag}={name}", str(caught.exception))

  def test_settings_that_go_together(self):
    certified = {"objective": "ibp", "attack": "none", "epsilon_growing_epochs": 2}
    parse(**certified, weight_perturbation=0.01)
    parse(objective="llr", attack_precision="auto")
    parse(precision="mixed_bfloat16", attack_precision="auto")
    parse(objective="trades", attack_precision="bfloat16")
    parse(attack="bim", steps_growing_epochs=2, epsilon_growing_epochs=1)
    parse(attack="fgsm", gradient_alignment=0.2, weight_perturbation=0.01)
    parse(objective="trades", unlabeled_data="u", mode="evaluate")
    parse(attack="none", unlabeled_data="u", unlabeled_loss="pseudo_label")
    parse(**IBP, epsilon_growing_epochs=8, epochs=10)

  @parameterized.parameters(
    ("fgsm", 1, 0.25),
    ("nfgsm", 1, 0.2),
    ("bim", 10, 0.05),
    ("momentum_pgd", 10, 0.05),
    ("wrm", 15, None),
    ("free", 8, 0.2),
    ("yopo", 5, 0.05),
  )
  def test_defaults_of_attacks(self, attack, steps, step_size):
    config = parse(attack=attack, epsilon=0.2)
    self.assertEqual(config.attack_steps, steps)
    if step_size is None:
      self.assertIsNone(config.step_size)
    else:
      self.assertAlmostEqual(config.step_size, step_size)

  def test_defaults_of_objectives(self):
    self.assertEqual(parse(objective="trades").penalty_weight, 6)
    self.assertEqual(parse(objective="trades", penalty_weight=3).penalty_weight, 3)
    self.assertIsNone(parse().penalty_weight)


if __name__ == "__main__":
  absltest.main()
