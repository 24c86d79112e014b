"""The addresses on which TensorFlow's server of a rank listens."""

from collections.abc import Callable
from pathlib import Path

import pytest

from syncbn.communicators.listening import address_of
from tests.processes import Launcher


@pytest.mark.parametrize(
    ("worker", "address"),
    [
        ("127.0.0.1:2222", "127.0.0.1"),
        ("localhost:2222", "127.0.0.1"),
        ("10.0.0.5:2222", "10.0.0.5"),
        ("[::1]:2222", "::1"),
        ("node-1.example:2222", None),
        ("0.0.0.0:2222", None),
    ],
)
def test_address_to_listen_on(worker: str, address: str | None) -> None:
    assert address_of(worker) == address


PROGRAM = """
import json
import socket
import psutil, syncbn, tensorflow as tf

communicator = syncbn.init("tf")
total = float(communicator.all_reduce(tf.ones([]), "sum"))
with socket.create_server(("", 0)):  # the program's own sockets are not affected
    listening = [c.laddr.ip for c in psutil.Process().net_connections() if c.status == "LISTEN"]
communicator.barrier()
print(json.dumps([total, sorted(listening)]))
"""


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_a_cluster_on_loopback_listens_on_loopback(
    tf_cluster: Launcher, script: Callable[[str], Path]
) -> None:
    for total, listening in tf_cluster(2, script(PROGRAM)).json():
        assert total == 2
        assert listening == ["0.0.0.0", "::ffff:127.0.0.1"]
