"""The addresses and interfaces of this machine that lead to another container."""

import ipaddress
import socket

import psutil


def address_to_listen_on(head: str | None) -> str:
    """The address to bind for `head`; "" (all addresses) if it is a name other than localhost.

    On its own machine, a host name may resolve to an address that others cannot reach.
    """
    if head == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.IPv4Address(head or ""))
    except ValueError:
        return ""


def own_address_toward(other: str) -> str:
    """The local address used to reach `other`. Raises OSError if there is no route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((other, 9))  # nothing is sent
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str:
    """The name of the interface that has this address; "" if none has it."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            return name
    return ""
