"""The frame protocol of the agent, and its functions on processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.agent import tree
from launcher.agent.command import own_agent
from launcher.agent.frames import REPORT, Decoder, encode_line, encode_report
from launcher.agent.process_spec import ProcessSpec

LINES = st.lists(
    st.tuples(st.integers(0, 3), st.binary(max_size=40).filter(lambda b: b"\n" not in b))
)


@given(LINES, st.integers(1, 50))
def test_lines_are_decoded_from_chunks_of_any_size(
    lines: list[tuple[int, bytes]], size: int
) -> None:
    data = b"".join(encode_line(rank, "o", line) for rank, line in lines)
    decoder = Decoder()
    frames = [
        frame
        for begin in range(0, len(data), size)
        for frame in decoder.feed(data[begin : begin + size])
    ]
    clean = [line.rstrip(b"\r").replace(b"\x1e", b"?").replace(b"\x1f", b"?") for _, line in lines]
    assert [frame.rank for frame in frames] == [rank for rank, _ in lines]
    assert [frame.text for frame in frames] == [line.decode(errors="replace") for line in clean]


def test_lines_split_and_tagged_by_mpirun_are_joined_per_rank() -> None:
    whole = {rank: encode_line(rank, "o", f"line of rank {rank}".encode()) for rank in (0, 1)}
    pieces = [(0, whole[0][:9]), (1, whole[1][:4]), (0, whole[0][9:-1]), (1, whole[1][4:-1])]
    data = b"".join(b"[1,%d]<stdout>:%s\n" % piece for piece in pieces)
    frames = list(Decoder().feed(data + b"mpirun has a word to say\n"))
    assert [frame.text for frame in frames] == [
        "line of rank 0",
        "line of rank 1",
        "mpirun has a word to say",
    ]
    assert [frame.rank for frame in frames] == [0, 1, None]


def test_a_very_long_line_is_split() -> None:
    frames = list(Decoder().feed(encode_line(0, "e", b"x" * 40_000)))
    assert "".join(frame.text for frame in frames) == "x" * 40_000
    assert len(frames) == 3


def test_reports() -> None:
    (frame,) = Decoder().feed(encode_report(-1, exit=0, survivors=[]))
    assert (frame.rank, frame.kind, frame.report) == (-1, REPORT, {"exit": 0, "survivors": []})


def test_a_process_spec_survives_json() -> None:
    process = ProcessSpec(["a"], "/", {"A": "ü"}, 3, 1, [{"B": "c"}], [[0], [1]], 9, 1.5, 2.0)
    assert ProcessSpec.decode(process.encode()) == process


def test_ranks_that_are_killed_leave_no_shared_memory() -> None:
    leave = "touch $OMPI_MCA_btl_vader_backing_directory/segment || exit 7"
    say = "echo $OMPI_MCA_btl_vader_backing_directory; kill -9 $$"
    process = ProcessSpec(["sh", "-c", f"{leave}; {say}"], "/", raw=True, shared_memory=True)
    with subprocess.Popen(own_agent(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as agent:
        assert agent.stdin is not None
        assert agent.stdout is not None
        agent.stdin.write(process.encode().encode() + b"\n")
        agent.stdin.flush()
        printed = agent.stdout.read().decode()
    (used,) = [line for line in printed.splitlines() if line.startswith("/dev/shm/launcher-")]
    assert not Path(used).exists()


@pytest.fixture
def family() -> "Iterator[subprocess.Popen[bytes]]":
    """A process with a child and a grandchild."""
    source = (
        "import subprocess, time; subprocess.Popen(['sh', '-c', 'sleep 60; true']); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", source], start_new_session=True)
    limit = time.monotonic() + 10
    while len(tree.descendants(parent.pid)) < 2 and time.monotonic() < limit:
        time.sleep(0.02)
    yield parent
    os.killpg(parent.pid, signal.SIGKILL)
    parent.wait()


@pytest.mark.timeout(30)
def test_descendants(family: "subprocess.Popen[bytes]") -> None:
    assert len(tree.descendants(family.pid)) == 2
    assert tree.resident_bytes([family.pid]) > 1 << 20
    assert tree.started_at(family.pid) > tree.started_at(os.getpid())


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("source", "deals"),
    [
        ("pass", False),
        ("signal.signal(15, lambda *a: None)", True),
        ("signal.pthread_sigmask(signal.SIG_BLOCK, {15})", True),
    ],
)
def test_which_processes_handle_sigterm(source: str, deals: bool) -> None:
    program = f"import signal, time; {source}; print(1, flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert tree.catches(process.pid, signal.SIGTERM) is deals
    finally:
        process.kill()
        process.communicate()
