"""Servers that only this host reaches."""

from __future__ import annotations

import socket
import subprocess
import sys
import unittest

from dat_tf.workers import fence, joined
from dat_tf.workers.cluster import Cluster
from workers import run_workers


def outer_address():
  """An address of this host that is not loopback; None without one."""
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    try:
      probe.connect(("192.0.2.1", 9))  # sends nothing
      return probe.getsockname()[0]
    except OSError:
      return None


def reaches(host, port):
  try:
    # Packets to an address of this host have that address as their source.
    with socket.create_connection((host, port), 1.0):
      return True
  except OSError:
    return False


def _look_at_worker():
  """Whether a worker of this host alone can be reached: from outside, and from here."""
  cluster = Cluster.from_environment()
  workers = joined.join(cluster, joined.communication_options("ring", 0, 0))
  found = reaches(outer_address(), cluster.port), reaches("127.0.0.1", cluster.port)
  workers.wait()
  return found


class FenceTest(unittest.TestCase):
  def servers(self):
    yield socket.create_server(("", 0))
    if socket.has_dualstack_ipv6():
      yield socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)

  def test_packets_of_other_addresses_are_dropped(self):
    outer = outer_address()
    if outer is None:
      self.skipTest("this host has no address but loopback")
    for server in self.servers():
      with self.subTest(server.family), server:
        port = server.getsockname()[1]
        inner = ["127.0.0.1", "127.0.0.2"]
        inner += ["::1"] if server.family == socket.AF_INET6 else []
        for host in [outer, *inner]:
          self.assertTrue(reaches(host, port), host)
        self.assertTrue(fence.only_from_this_host(port))
        self.assertFalse(reaches(outer, port))
        for host in inner:
          self.assertTrue(reaches(host, port), host)

  def test_other_servers_stay_open(self):
    with socket.create_server(("", 0)) as one, socket.create_server(("", 0)) as other:
      self.assertTrue(fence.only_from_this_host(one.getsockname()[1]))
      self.assertTrue(reaches("127.0.0.1", other.getsockname()[1]))
      if outer := outer_address():
        self.assertTrue(reaches(outer, other.getsockname()[1]))
    self.assertFalse(fence.only_from_this_host(one and 1))

  def test_workers_of_this_host(self):
    if outer_address() is None:
      self.skipTest("this host has no address but loopback")
    self.assertEqual(run_workers(_look_at_worker, 2), [(False, True)] * 2)

  def test_the_data_service_without_a_host(self):
    outer = outer_address()
    if outer is None:
      self.skipTest("this host has no address but loopback")
    for host, open_to_others in (([], False), ([f"--host={outer}"], True)):
      service = subprocess.Popen(
        [sys.executable, "-m", "dat_tf.data.service", "--port=0", *host],
        stdout=subprocess.PIPE,
        text=True,
      )
      self.addCleanup(service.kill)
      with service:
        for _ in ("dispatcher", "worker"):
          port = int(service.stdout.readline().rpartition(":")[2])
          self.assertEqual(reaches(outer, port), open_to_others)
          self.assertTrue(reaches("127.0.0.1", port))
        service.terminate()
        self.assertEqual(service.wait(timeout=60), 0)

  def test_loopback(self):
    for host in ("localhost", "127.0.0.1", "127.0.0.53", "[::1]", "::1"):
      self.assertTrue(fence.is_loopback(host), host)
    for host in ("10.0.0.1", "a", "::2", "0.0.0.0", ""):
      self.assertFalse(fence.is_loopback(host), host)


if __name__ == "__main__":
  unittest.main()
