"""Where the ranks of a direct exchange listen, and with which other ranks each one connects."""

import contextlib
import fcntl
import json
import os
import socket
import struct
from dataclasses import asdict, dataclass
from pathlib import Path

_SIOCGIFADDR = 0x8915  # <linux/sockios.h>


@dataclass(frozen=True)
class Address:
    """Where a rank listens.

    Attributes:
        host: Equal for ranks that can share memory; empty if this rank shares none.
        local: The name of its abstract Unix socket.
        ip: An IPv4 address.
        port: A TCP port.
        token: Random hexadecimal digits; those of the first rank are the token of the group.
    """

    host: str
    local: str
    ip: str
    port: int
    token: str

    def shares_memory_with(self, other: "Address") -> bool:
        """Whether two ranks exchange messages in shared memory."""
        return self.host != "" and self.host == other.host

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Address":
        return cls(**json.loads(text))


def partners(rank: int, size: int) -> list[int]:
    """The ranks with which `rank` exchanges messages, ascending: see native/exchange.cc."""
    doubling = 1 << (size.bit_length() - 1)
    excess = size - doubling
    paired = rank < 2 * excess
    if paired and rank % 2:
        return [rank - 1]
    found = [rank + 1] if paired else []
    place = rank // 2 if paired else rank - excess
    distance = 1
    while distance < doubling:
        there = place ^ distance
        found.append(2 * there if there < excess else there + excess)
        distance *= 2
    return sorted(found)


def address_of_job() -> str:
    """The IPv4 address of the network interface that Gloo uses on this host."""
    interface = os.environ.get("HOROVOD_GLOO_IFACE", "").split(",")[0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        if interface:
            request = struct.pack("256s", interface.encode()[:15])
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
                return socket.inet_ntoa(answer[20:24])
        # The address from which this host reaches the rendezvous server; this sends nothing.
        server = os.environ.get("HOROVOD_GLOO_RENDEZVOUS_ADDR") or "127.0.0.1"
        probe.connect((server, 9))
        return str(probe.getsockname()[0])


def host_identity() -> str:
    """Equal for processes of one user, kernel and network namespace, which can share memory.

    Empty if this process cannot share memory.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        network = os.stat("/proc/self/ns/net").st_ino
        os.close(os.memfd_create("syncbn"))
    except OSError:
        return ""
    return f"{boot} {network} {os.geteuid()}"
