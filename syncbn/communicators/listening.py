"""Makes TensorFlow's server listen on the address in TF_CONFIG instead of all addresses.

The server runs graphs, including file operations, for every client that reaches its port, without
authentication. TensorFlow 2.21 binds it to `0.0.0.0` regardless of the host in TF_CONFIG, and has
no option to change that. While the server starts, the `bind` that TensorFlow's libraries call
replaces the wildcard by the address of this process. Only the import tables of these libraries are
changed in memory, during that time; the program's own sockets are not affected.
"""

import ctypes
import errno
import ipaddress
import logging
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

_log = logging.getLogger(__name__)

_LIBRARY = b"libtensorflow"
_PT_DYNAMIC = 2
_SYMBOLS, _STRINGS, _STRINGS_SIZE, _CALLS, _CALLS_SIZE = 6, 5, 10, 23, 2  # tags of <elf.h>
_RELOCATION = np.dtype([("place", "<u8"), ("kind", "<u8"), ("addend", "<i8")])
_SYMBOL = np.dtype([("name", "<u4"), ("kind", "<u4"), ("value", "<u8"), ("size", "<u8")])
_HEADER = struct.Struct("<IIQQQQQQ")
_NAME = np.frombuffer(b"bind\0", np.uint8)
_READ_WRITE = 3
_PAGE = 4096

_Bind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, use_errno=True)


class _Loaded(ctypes.Structure):
    """The first fields of `struct dl_phdr_info`: one loaded library."""

    _fields_ = [
        ("base", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
        ("headers", ctypes.c_void_p),
        ("count", ctypes.c_uint16),
    ]


_Visit = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Loaded), ctypes.c_size_t, ctypes.c_void_p)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.bind.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def address_of(worker: str) -> str | None:
    """The address to listen on for a worker `host:port` of TF_CONFIG.

    None if the host is a name, which this machine and others may resolve differently.
    """
    host = worker.rsplit(":", 1)[0].strip("[]")
    if host == "localhost":
        return "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return None if address.is_unspecified else str(address)


@contextmanager
def only_on(address: str) -> Iterator[None]:
    """Context in which TensorFlow binds to `address` instead of all addresses.

    Logs a warning if that is not possible. If the address does not belong to this machine (network
    address translation), TensorFlow binds to all addresses.
    """
    hook = _Bind(_bind_to(address))
    pointer = ctypes.cast(hook, ctypes.c_void_p).value
    slots: dict[int, int] = {}
    try:
        slots = {slot: ctypes.c_uint64.from_address(slot).value for slot in _slots()}
    except (OSError, ValueError, struct.error) as error:
        _log.debug("cannot read the symbol tables of TensorFlow's libraries: %s", error)
    if not slots:
        _log.warning(
            "TensorFlow's server listens on all addresses of this machine, not on %s alone: "
            "protect its port with a firewall (SECURITY.md)",
            address,
        )
    try:
        for slot in slots:
            _write(slot, pointer or 0)
        yield
    finally:
        for slot, original in slots.items():
            _write(slot, original)


def _bind_to(address: str) -> Callable[[int, int, int], int]:
    four = ipaddress.ip_address(address).version == 4
    packed = socket.inet_pton(socket.AF_INET if four else socket.AF_INET6, address)
    six = (
        b"\0" * 10 + b"\xff\xff" + packed if four else packed
    )  # IPv4-mapped for dual-stack sockets

    def bind(descriptor: int, given: int, length: int) -> int:
        content = bytearray(ctypes.string_at(given, length))
        family = int.from_bytes(content[:2], "little")
        if family == socket.AF_INET and four and not any(content[4:8]):
            content[4:8] = packed
        elif family == socket.AF_INET6 and not any(content[8:24]):
            content[8:24] = six
        else:
            return int(_libc.bind(descriptor, given, length))
        chosen = (ctypes.c_char * length).from_buffer(content)
        code = int(_libc.bind(descriptor, ctypes.addressof(chosen), length))
        if code != 0 and ctypes.get_errno() == errno.EADDRNOTAVAIL:
            _log.warning(
                "%s is not an address of this machine: TensorFlow listens on all addresses", address
            )
            return int(_libc.bind(descriptor, given, length))
        return code

    return bind


def _slots() -> list[int]:
    """Addresses of the import table slots for `bind` in TensorFlow's libraries."""
    libraries: list[tuple[int, int]] = []

    def visit(loaded: "ctypes._Pointer[_Loaded]", size: int, data: int) -> int:
        library = loaded.contents
        if _LIBRARY in (library.name or b""):
            for index in range(library.count):
                header = ctypes.string_at(library.headers + index * _HEADER.size, _HEADER.size)
                kind, _, _, place, *_ = _HEADER.unpack(header)
                if kind == _PT_DYNAMIC:
                    libraries.append((library.base, library.base + place))
        return 0

    _libc.dl_iterate_phdr(_Visit(visit), None)
    return [slot for base, dynamic in libraries for slot in _slots_of(base, dynamic)]


def _slots_of(base: int, dynamic: int) -> list[int]:
    entries: dict[int, int] = {}
    while (tag := ctypes.c_int64.from_address(dynamic).value) != 0:
        entries[tag] = ctypes.c_uint64.from_address(dynamic + 8).value
        dynamic += 16
    if not {_SYMBOLS, _STRINGS, _STRINGS_SIZE, _CALLS, _CALLS_SIZE} <= entries.keys():
        return []

    def place(tag: int) -> int:
        # The loader relocates most of these entries to absolute addresses.
        return entries[tag] if entries[tag] > base else base + entries[tag]

    calls = _table(place(_CALLS), entries[_CALLS_SIZE] // _RELOCATION.itemsize, _RELOCATION)
    numbers = (calls["kind"] >> np.uint64(32)).astype(np.int64)
    symbols = _table(place(_SYMBOLS), int(numbers.max(initial=0)) + 1, _SYMBOL)
    text = _table(place(_STRINGS), entries[_STRINGS_SIZE], np.dtype(np.uint8))
    starts = symbols["name"][numbers].astype(np.int64)
    starts = np.minimum(starts, len(text) - len(_NAME))
    found = np.all(text[starts[:, None] + np.arange(len(_NAME))] == _NAME, axis=1)
    return [base + int(offset) for offset in calls["place"][found]]


def _table(address: int, count: int, kind: np.dtype) -> np.ndarray:
    raw = (ctypes.c_char * (count * kind.itemsize)).from_address(address)
    return np.frombuffer(memoryview(raw).cast("B"), kind)


def _write(slot: int, value: int) -> None:
    page = slot // _PAGE * _PAGE
    if _libc.mprotect(page, _PAGE, _READ_WRITE) == 0:
        ctypes.c_uint64.from_address(slot).value = value
