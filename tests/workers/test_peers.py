"""Workers that meet, that are missing, and that are gone."""

from __future__ import annotations

import json
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest
from concurrent import futures
from unittest import mock

from dat_tf.base.errors import UserError
from dat_tf.launch import free_addresses
from dat_tf.workers import peers

ROOT = pathlib.Path(__file__).resolve().parents[2]

MEET = """
import signal, sys, time
from dat_tf.base import errors
from dat_tf.workers import peers
peers._FIRST_WORD = 0.2
@errors.exit_on_user_error
def main(argv):
  peers.meet(argv[1].split(","), int(argv[2]), float(argv[3]))
  print("met", flush=True)
# Ignored in what a script has started in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv))
"""
# A server that speaks first, as gRPC's does, whose process can be stopped.
SPEAK = """
import socket, sys, threading
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
while True:
  connection, _ = server.accept()
  connection.sendall(b"settings")
  connection.close()
"""
LOOK = """
import sys, time
from dat_tf.workers import peers
peers._LOOK, peers._ANSWER = 0.2, 0.2
lookout = peers.Lookout(sys.argv[1].split(","), 1, 1.0)
print("ready", flush=True)
if not sys.stdin.readline():  # closed
  time.sleep(20)
lookout.stop()
print("stopped", flush=True)
time.sleep(2)
"""


def start(code, *arguments):
  return subprocess.Popen(
    [sys.executable, "-c", code, *map(str, arguments)],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


class PeersCase(unittest.TestCase):
  def start(self, *arguments):
    process = start(*arguments)
    self.addCleanup(process.communicate)
    self.addCleanup(process.kill)
    return process


class MeetTest(PeersCase):
  def meet(self, lists, indices=None, timeout=20.0):
    """What each of some workers, all in this process, says to their meeting."""

    def one(pair):
      try:
        peers.meet(lists[pair[0]], pair[1], timeout)
        # Its port is free again for TensorFlow's server, which late ones will meet.
        port = lists[pair[0]][pair[1]].rpartition(":")[2]
        self.assertEqual(self.start(SPEAK, port).stdout.readline(), "ready\n")
        return "met"
      except UserError as error:
        return str(error)

    with futures.ThreadPoolExecutor(len(lists)) as pool:
      return list(pool.map(one, enumerate(indices or range(len(lists)))))

  def test_all_meet_whoever_comes_first(self):
    self.assertEqual(self.meet([free_addresses(3)] * 3), ["met"] * 3)

  def test_one_that_is_further_on_is_met_by_its_server(self):
    addresses = free_addresses(2)
    server = self.start(SPEAK, addresses[0].rpartition(":")[2])
    self.assertEqual(server.stdout.readline(), "ready\n")
    peers.meet(addresses, 1, 20.0)

  def test_a_port_that_is_taken(self):
    addresses = free_addresses(2)
    port = int(addresses[1].rpartition(":")[2])
    with socket.create_server(("", port)):
      with self.assertRaisesRegex(UserError, rf"Worker 1 .* port {port} .*another"):
        peers.meet(addresses, 1, 5.0)

  def test_lists_that_differ(self):
    two, three = free_addresses(2), free_addresses(1)
    said = self.meet([two, [*two, *three]], timeout=5.0)
    self.assertRegex(said[0], "lists 2 workers, and that of .* 3, .*same cluster")
    self.assertRegex(said[1], "lists 3 workers, and that of .* 2, .*same cluster")

  def test_an_index_that_is_another_s(self):
    # On hosts of their own both workers with index 0 would have their port.
    addresses = free_addresses(2)
    port = int(addresses[1].rpartition(":")[2])
    server = socket.create_server(("127.0.0.1", port))
    self.addCleanup(server.close)
    greeting = peers._MAGIC + json.dumps([addresses, 0]).encode() + b"\n"

    def serve():
      connection, _ = server.accept()
      with connection:
        connection.sendall(greeting)

    threading.Thread(target=serve, daemon=True).start()
    with self.assertRaisesRegex(UserError, "index 0 to .*worker 1 of the cluster"):
      peers.meet(addresses, 0, 5.0)

  def test_whatever_answers_is_heard(self):
    addresses = free_addresses(2)
    port = int(addresses[1].rpartition(":")[2])
    for answer in (b"dat-tf [[[[", b"dat-tf 3\n", b"dat-tf [[], {}, 2]\n", b"\xff"):
      with socket.create_server(("127.0.0.1", port)) as server:

        def serve(server=server, answer=answer):
          connection, _ = server.accept()
          with connection:
            connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        peers.meet(addresses, 0, 5.0)

  def test_one_that_is_missing_is_named_until_the_wait_is_over(self):
    addresses = free_addresses(2)
    process = self.start(MEET, ",".join(addresses), 0, 1.5)
    out, err = process.communicate(timeout=60)
    self.assertEqual((process.returncode, out), (2, ""), err)
    word, end = err.splitlines()
    missing = f"worker 1 at {addresses[1]} (Connection refused)"
    self.assertEqual(word, f"Worker 0 is waiting for {missing} ...")
    self.assertIn(f"has waited 1.5 s (`start_timeout`) for {missing}: start", end)

  def test_a_host_that_does_not_exist(self):
    own = free_addresses(1)
    with self.assertRaisesRegex(
      UserError, "worker 1 at no.invalid:22 .*mend TF_CONFIG"
    ):
      peers.meet([*own, "no.invalid:22"], 0, 0.1)

  def test_signals_end_the_wait(self):
    for number, code in ((signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, None)):
      process = self.start(MEET, ",".join(free_addresses(2)), 0, 60)
      self.assertIn("is waiting for worker 1", process.stderr.readline())
      process.send_signal(number)
      process.communicate(timeout=20)
      self.assertTrue(process.returncode == code or code is None)
      self.assertNotEqual(process.returncode, 0)


class LookoutTest(PeersCase):
  def setUp(self):
    super().setUp()
    self.addresses = free_addresses(2)
    self.peer = self.start(SPEAK, self.addresses[0].rpartition(":")[2])
    self.assertEqual(self.peer.stdout.readline(), "ready\n")
    self.looking = self.start(LOOK, ",".join(self.addresses))
    self.assertEqual(self.looking.stdout.readline(), "ready\n")
    time.sleep(0.5)  # some looks that find it alive

  def end(self):
    out, err = self.looking.communicate(timeout=30)
    return self.looking.returncode, out, err

  def test_one_that_ended_is_named(self):
    self.peer.kill()
    code, out, err = self.end()
    self.assertEqual((code, out), (1, ""))
    self.assertEqual(len(err.splitlines()), 1, err)
    where = self.addresses[0].replace(".", r"\.")
    self.assertRegex(err, rf"Worker 1 ends because worker 0 \({where}\) has ended: see")

  def test_one_that_froze_is_named(self):
    self.peer.send_signal(signal.SIGSTOP)
    code, out, err = self.end()
    self.assertEqual((code, out), (1, ""))
    self.assertRegex(err, r"because worker 0 \(.*\) has not answered for [12] s: see")

  def test_a_pause_is_borne(self):
    self.peer.send_signal(signal.SIGSTOP)
    time.sleep(0.4)
    self.peer.send_signal(signal.SIGCONT)
    time.sleep(1.5)
    self.assertIsNone(self.looking.poll())

  def test_after_its_end_nobody_is_missed(self):
    self.looking.stdin.write("\n")
    self.looking.stdin.flush()
    self.assertEqual(self.looking.stdout.readline(), "stopped\n")
    self.peer.kill()
    self.assertEqual(self.end()[0], 0)


class FarewellTest(unittest.TestCase):
  def test_tensorflow_s_task_is_named(self):
    # As TensorFlow 2.15 writes it on worker 0 when worker 1 ends, 2 because of it.
    error = RuntimeError(
      "Collective ops is aborted by: failed to connect to all addresses\nAdditional "
      "GRPC error information from remote target /job:worker/replica:0/task:1 while "
      "calling"
      " /tensorflow.WorkerService/RecvBuf:\nAdditional GRPC error information from"
      " remote target /job:worker/replica:0/task:2"
    )
    line = peers.farewell(error, ["a:1", "b:2", "c:3"], 0)
    self.assertIn("Worker 0 ends because worker 1 (b:2) was lost: see", line)

  def test_else_those_who_do_not_answer(self):
    addresses = free_addresses(3)
    server = start(SPEAK, addresses[2].rpartition(":")[2])
    self.addCleanup(server.communicate)
    self.addCleanup(server.kill)
    server.stdout.readline()
    with mock.patch.object(peers, "_ANSWER", 1.0):
      line = peers.farewell(RuntimeError("/task:0"), addresses, 0)
    self.assertIn(f"because worker 1 ({addresses[1]}) was lost", line)
    server.kill()
    server.wait()
    line = peers.farewell(OSError(), addresses, 0)
    self.assertIn(f"), worker 2 ({addresses[2]}) was", line)

  def test_nobody_is_named_without_a_reason(self):
    line = peers.farewell(RuntimeError("/job:worker/replica:0/task:0"), ["a:1"], 0)
    self.assertIn("because another one was lost", line)


if __name__ == "__main__":
  unittest.main()
