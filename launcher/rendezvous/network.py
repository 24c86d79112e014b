"""The addresses and interfaces of this machine that lead to another container."""

import ipaddress
import socket

import psutil


def address_to_listen_on(head: str | None) -> str:
    """`head` as the first container may bind to it; "" (all addresses) where it is only a name.

    A name may mean an address of its own to the machine that bears it.
    """
    if head == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.IPv4Address(head or ""))
    except ValueError:
        return ""


def own_address_toward(other: str) -> str:
    """Our address as the machine at `other` sees it. Raises OSError if there is no route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((other, 9))  # nothing is sent
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str:
    """The name of the interface that has this address; "" if none has any more."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return name
    return ""
