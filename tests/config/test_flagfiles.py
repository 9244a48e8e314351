"""Flagfiles and command lines, as text."""

from __future__ import annotations

import os
import pathlib
import tempfile
from unittest import mock

from absl.testing import parameterized

from dat_tf.base.errors import UserError, shown
from dat_tf.config import flagfiles


class FlagfilesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    directory = tempfile.TemporaryDirectory()
    self.addCleanup(directory.cleanup)
    self.folder = pathlib.Path(directory.name)

  def write(self, content, name="a.flags"):
    path = self.folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)

  def assert_refused(self, *words, says):
    with self.assertRaisesRegex(UserError, says) as caught:
      flagfiles.arguments(words)
    self.assertLen(str(caught.exception).splitlines(), 1)

  @parameterized.parameters("--flagfile=", "-flagfile=", "--flagfile ", "-flagfile ")
  def test_the_command_line_wins_in_every_spelling(self, spelling):
    path = self.write("--epochs=1\n--seed=2\n")
    words = (spelling + path).split(" ")
    expected = ["--epochs=1", "--seed=2", "--epochs=3", "--seed", "4"]
    for own in (
      ["--epochs=3", *words, "--seed", "4"],
      [*words, "--epochs=3", "--seed", "4"],
      ["--epochs=3", "--seed", "4", *words],
    ):
      self.assertEqual(flagfiles.arguments(own), expected)

  def test_after_two_dashes_no_word_is_a_flagfile(self):
    words = ["--a=1", "--", "--flagfile=nowhere"]
    self.assertEqual(flagfiles.arguments(words), words)

  @parameterized.parameters(
    ("--dir=a b/c", "--dir=a b/c"),
    ("--dir a/b", "--dir=a/b"),
    ("--dir=a   # my run", "--dir=a"),
    ("--dir a # my run", "--dir=a"),
    ("--dir=a#1", "--dir=a#1"),
    ("--dir=#1", "--dir=#1"),
    ("--dir= # none", "--dir="),
    ("--dir='a # b'  # c", "--dir=a # b"),
    ('--dir="a b"', "--dir=a b"),
    ("'--dir=a*'", "--dir=a*"),
    ('"--dir=a*"  # quoted for a shell', "--dir=a*"),
    ("--dir=it's", "--dir=it's"),
    ("--flag  # on", "--flag"),
    ("--flag", "--flag"),
    ("  --flag\r", "--flag"),
    ("--names=a=b c=d", "--names=a=b c=d"),
  )
  def test_a_line(self, line, flag):
    self.assertEqual(list(flagfiles.read_flags(f"\n# x\n// y\n{line}\n")), [flag])

  @parameterized.parameters(
    "a", "", "a b", "a #b", "'a'", '"a"', "it's #1", "#", "~/a", "ε", "a\u2028b", "'"
  )
  def test_what_is_written_is_read(self, value):
    flag = f"--name={value}"
    self.assertEqual(list(flagfiles.read_flags(flagfiles.to_line(flag))), [flag])

  def test_what_cannot_be_written_is_said(self):
    with self.assertRaisesRegex(UserError, "flagfile"):
      flagfiles.to_line("--name=a\nb")

  def test_utf_8_with_and_without_a_mark(self):
    for encoding in ("utf-8", "utf-8-sig"):
      path = self.write("--dir=Größe\n".encode(encoding))
      self.assertEqual(flagfiles.arguments([f"--flagfile={path}"]), ["--dir=Größe"])
    for encoding in ("latin-1", "utf-16"):
      path = self.write("# Größe\n--a=1\n".encode(encoding))
      self.assert_refused(f"--flagfile={path}", says="a.flags is not UTF-8")

  def test_home(self):
    inner = self.write("--dir=~/x\n--runs=a,~/b,c~/d\n--other=~x\n")
    with mock.patch.dict(os.environ, HOME=r"/h\1"):
      self.assertEqual(
        flagfiles.arguments([f"--flagfile={inner}", "--out=~/y", "--all=~"]),
        [r"--dir=/h\1/x", r"--runs=a,/h\1/b,c~/d", "--other=~x"]
        + [r"--out=/h\1/y", r"--all=/h\1"],
      )

  def test_nested_files_stand_where_they_are_named(self):
    inner = self.write("--a=1\n--b=1\n", "inner.flags")
    outer = self.write(f"--a=0\n--flagfile={inner}\n--b=2\n", "outer.flags")
    self.assertEqual(
      flagfiles.arguments([f"--flagfile={outer}", f"--flagfile={inner}"]),
      ["--a=0", "--a=1", "--b=1", "--b=2", "--a=1", "--b=1"],
    )

  def test_a_file_that_includes_itself(self):
    a, b = (str(self.folder / name) for name in ("a.flags", "b.flags"))
    self.write(f"--flagfile={b}\n", "a.flags")
    self.write(f"--x=1\n--flagfile {a}\n", "b.flags")
    self.assert_refused(f"--flagfile={a}", says="a.flags includes itself")

  def test_files_that_grow_without_measure(self):
    for i in range(30):
      twice = f"--flagfile={self.folder}/{i + 1}\n" * 2
      self.write(twice if i < 29 else "--x=1\n", str(i))
    self.assert_refused(f"--flagfile={self.folder}/0", says="10,000")

  def test_what_is_no_flagfile(self):
    os.mkfifo(self.folder / "pipe")
    for name, says in (
      ("nowhere", "cannot be read .No such file"),
      ("", "is no file"),
      ("pipe", "is no file"),
      ("/dev/zero", "is no file"),
    ):
      path = os.path.join(self.folder, name)
      self.assert_refused("--flagfile", path, says=says)
    self.assert_refused("--flagfile", says="has no value")
    self.assert_refused("--flagfile=a\0b", says="cannot be read")
    self.assert_refused(f"--flagfile={self.write('#' * 2**21)}", says="1 MiB")
    for line in ("model_dir=a", "--", "some words"):
      self.assert_refused(f"--flagfile={self.write(line)}", says="is no flag")

  @parameterized.parameters("a\nb", "a\x1b[2J", "\udcff", "a\u2028b")
  def test_words_with_characters_that_no_value_may_have(self, value):
    self.assert_refused(f"--dir={value}", says="control character")


class ShownTest(parameterized.TestCase):
  def test_a_message_is_short_and_printable(self):
    line = shown(UserError(f"--a={'x' * 10_000}\x1b[2J\udcff is wrong:\n mend it."))
    self.assertLess(len(line), 620)
    self.assertStartsWith(line, "--a=xxx")
    self.assertEndsWith(line, r"xxx\x1b[2J\udcff is wrong: mend it.")
    self.assertEqual(shown(UserError("Größe ε")), "Größe ε")
