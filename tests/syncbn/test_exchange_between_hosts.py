"""Sums by direct messages between hosts, which are network namespaces, and a cut between them."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.placement import backends
from launcher.placement.slots import assign_slots
from launcher.spec import Host
from syncbn import native
from tests.launcher import networks
from tests.processes import REPOSITORY
from tests.requirements import require_horovod

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(150)]

PROGRAM = """
import json, logging, os, sys, time
import numpy as np
import tensorflow as tf
import syncbn
from syncbn.communicators import links

opened = []
open_links = links.Links.open
def remember(self, *arguments):
    found = open_links(self, *arguments)
    opened.extend([link.rank, link.shared] for link in found)
    opened.append(self.address.ip)
    return found
links.Links.open = remember

communicator = syncbn.init("horovod")
values = tf.constant(np.random.default_rng(communicator.rank).normal(size=30000))
total = communicator.all_reduce(values, "sum").numpy()
print(json.dumps([communicator.transport, total.tobytes().hex()[:4000], opened]), flush=True)
sys.stdin.readline()
started = time.monotonic()
try:
    while True:
        communicator.all_reduce(values, "sum")
except tf.errors.OpError as error:
    print(json.dumps([time.monotonic() - started, str(error)]), flush=True)
    os._exit(3)
"""


@pytest.fixture
def network(tmp_path: Path) -> Iterator[networks.Network]:
    require_horovod()
    if (lacking := networks.missing()) is not None:
        pytest.skip(lacking)
    if native.kernels() is None:
        pytest.skip(f"the kernels are not to be had here: {native.status().reason}")
    made = networks.Network(tmp_path / "network", hosts=2)
    try:
        yield made
    finally:
        made.close()


def test_memory_within_a_host_and_tcp_between_hosts(
    network: networks.Network, script: Callable[[str], Path]
) -> None:
    program = script(PROGRAM)
    first, second = network.hosts
    slots = assign_slots(3, [Host(name=first, slots=2), Host(name=second, slots=1)])
    ranks = []
    with backends.rendezvous(slots, network.address, 0) as port:
        for slot in slots:
            there = [*shlex.split(network.ssh), slot.hostname]
            found = subprocess.run(
                [*there, f"ip -o -4 addr show to {slot.hostname}"],
                capture_output=True,
                text=True,
                check=True,
            )
            environment = backends.gloo_environment(
                slot, network.address, port, found.stdout.split()[1]
            )
            environment |= {"HOROVOD_GLOO_TIMEOUT_SECONDS": "6", "PYTHONPATH": str(REPOSITORY)}
            environment |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
            words = [f"{name}={value}" for name, value in environment.items()]
            command = shlex.join(["env", *words, sys.executable, str(program)])
            ranks.append(
                subprocess.Popen(
                    [*there, f"cd {REPOSITORY} && exec {command}"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        try:
            sums = [_answer(rank) for rank in ranks]
            assert [found[0] for found in sums] == ["direct exchange"] * 3
            assert len({found[1] for found in sums}) == 1
            # Three ranks: the first two exchange in memory, the first and the last over TCP.
            assert [found[2] for found in sums] == [
                [[1, True], [2, False], first],
                [[0, True], first],
                [[0, False], second],
            ]
            for rank in ranks:
                assert rank.stdin is not None
                rank.stdin.write("\n")
                rank.stdin.flush()
            network.cut(second)
            for rank in ranks[:2]:
                seconds, text = _answer(rank)
                assert "heartbeat timeout: rank 2 is stopped, or its connection is cut" in text
                assert 3 < seconds < 30
                assert rank.wait(20) == 3
        finally:
            for rank in ranks:
                rank.kill()
                rank.communicate()


def _answer(rank: "subprocess.Popen[str]") -> Any:
    """The next line of JSON of a rank."""
    assert rank.stdout is not None
    for line in rank.stdout:
        if line.startswith("["):
            return json.loads(line)
    raise AssertionError("a rank has ended without an answer")
