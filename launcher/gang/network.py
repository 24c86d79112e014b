"""Which of this machine's addresses and interfaces lead to another container."""

import socket

import psutil


def own_address_toward(other: str) -> str:
    """Our address as the machine at `other` sees it. Raises OSError without a way there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((other, 9))  # nothing is sent
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str:
    """The name of the interface that has this address; "" if none has any more."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return name
    return ""
