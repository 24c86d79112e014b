"""The choice of the library of kernels, and one-line messages if there is none."""

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from syncbn import native
from syncbn.moments import Layout
from syncbn.native import compiler, library
from tests.processes import Launcher
from tests.requirements import require_compiler
from tests.syncbn.test_normalize import by_native

NAME = compiler.file_name(platform.machine())


@pytest.fixture
def fresh() -> Iterator[None]:
    """A process that has not loaded the kernels."""
    native._kernels.cache_clear()
    yield
    native._kernels.cache_clear()


@pytest.fixture
def nowhere(fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No library and no compiler; returns the directory for libraries."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    monkeypatch.setattr(compiler, "PACKAGED", tmp_path / "package")
    return tmp_path / "package" / NAME


@pytest.fixture(scope="module")
def built() -> bytes:
    """The library for this machine, read before a test hides it."""
    kernels = native.kernels()
    if kernels is None:
        pytest.skip(f"the kernels are not to be had here: {native.status().reason}")
    return kernels.file.read_bytes()


def reason(caplog: pytest.LogCaptureFixture) -> str:
    """Why layers do not use the kernels: one line in the status, and once in the log."""
    status = native.status()
    assert native.operations() is None
    assert (status.path, status.library, status.instruction_set) == ("tensorflow", None, None)
    assert status.reason is not None
    assert str(status) == f"operations of TensorFlow {status.tensorflow}: {status.reason}"
    assert "\n" not in status.reason
    assert caplog.text.count("slower TensorFlow operations") == 1
    assert status.reason in caplog.text
    return status.reason


def test_the_status_names_the_library_and_the_instructions(built: bytes) -> None:
    status = native.status()
    assert (status.path, status.reason) == ("native", None)
    assert status.library is not None
    assert Path(status.library).name == NAME
    expected = {"x86_64": "x86-64-v", "aarch64": "aarch64"}.get(platform.machine(), "baseline")
    assert str(status.instruction_set).startswith(expected)
    assert str(status).startswith(f"native ({status.instruction_set}, {status.library}, TensorFlow")


@pytest.mark.usefixtures("fresh", "built")
def test_the_least_instructions_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    least = {"x86_64": "x86-64-v2", "aarch64": "aarch64"}.get(platform.machine(), "baseline")
    monkeypatch.setenv("SYNCBN_MARCH", least)
    assert native.status().instruction_set == least


@pytest.mark.usefixtures("fresh", "built")
def test_all_instructions_of_this_processor_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """tests/machines/test_arithmetic.py tests other processors by emulation."""
    random = np.random.default_rng(11)
    kinds = ("float16", "bfloat16", "float32", "float64")
    data = [
        (axis, tf.cast(random.normal(100.0, size=shape), kind))
        for axis, shape in ((1, (700, 24)), (1, (5, 3, 37)))
        for kind in kinds
    ]
    seen = {}
    for level in ("", "x86-64-v2", "x86-64-v3", "x86-64-v4"):
        native._kernels.cache_clear()
        monkeypatch.setenv("SYNCBN_MARCH", level)
        if native.operations() is not None:
            seen[native.status().instruction_set] = [_step(x, axis) for axis, x in data]
    first, *others = seen.values()
    for other in others:
        assert other == first, list(seen)


def _step(x: tf.Tensor, axis: int) -> list[bytes]:
    """Outputs, moments and gradients, from a new graph, which loads the kernels again."""
    channels = x.shape[axis]
    dtype = tf.float64 if x.dtype == tf.float64 else tf.float32

    @tf.function
    def step(x: tf.Tensor) -> list[tf.Tensor]:
        scale, offset = tf.range(1, channels + 1, dtype=dtype), tf.ones(channels, dtype)
        sources = [x, scale, offset]
        with tf.GradientTape() as tape:
            tape.watch(sources)
            y, moments = by_native(x, scale, offset, Layout(x.shape.rank, axis))
            loss = tf.reduce_sum(y * y)
        return [y, moments.mean, moments.variance, *tape.gradient(loss, sources)]

    return [np.asarray(part).tobytes() for part in step(x)]


@pytest.mark.usefixtures("fresh", "built")
def test_unknown_instructions(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SYNCBN_MARCH", "haswell")
    assert reason(caplog).startswith("SYNCBN_MARCH must be one of ")
    assert reason(caplog).endswith("Received: 'haswell'")


@pytest.mark.usefixtures("fresh")
def test_without_the_kernels_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNCBN_NATIVE", "0")
    assert native.operations() is None
    assert native.status().reason == "SYNCBN_NATIVE=0 is set"


@pytest.mark.usefixtures("nowhere")
def test_no_compiler(caplog: pytest.LogCaptureFixture) -> None:
    assert "no C++ compiler to build the kernels with. Install g++" in reason(caplog)


def test_a_compiler_that_fails_leaves_nothing_behind(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho 'x.cc:1: error: no such header' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    assert f"{broken} failed: x.cc:1: error: no such header" in reason(caplog)
    assert [path.name for path in (tmp_path / "cache" / "syncbn").iterdir()] == ["lock"]


def test_a_cache_that_cannot_be_written(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file, not a directory: root may write anywhere else")
    expected = f"the kernels cannot be built in {tmp_path}/cache/syncbn: Not a directory"
    assert reason(caplog) == expected


@pytest.mark.usefixtures("nowhere")
def test_a_user_without_a_home(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 12345678)
    assert reason(caplog) == (
        "there is no directory to build the kernels in: set XDG_CACHE_HOME or HOME"
    )


@pytest.mark.parametrize("kept", [0, 3, 100, -1])
def test_a_library_cut_short_is_not_loaded(
    nowhere: Path, built: bytes, kept: int, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere.parent.mkdir()
    nowhere.write_bytes(built[:kept])
    assert str(nowhere) in reason(caplog)
    assert "no C++ compiler" in reason(caplog)


def test_a_library_with_a_changed_byte_is_not_loaded(
    nowhere: Path, built: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere.parent.mkdir()
    middle = len(built) // 2
    nowhere.write_bytes(built[:middle] + bytes([built[middle] ^ 1]) + built[middle + 1 :])
    assert f"{nowhere} is damaged or cut short" in reason(caplog)


def test_a_library_for_another_architecture_is_not_loaded(
    nowhere: Path, built: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    kind, name = (62, "x86_64") if platform.machine() == "aarch64" else (183, "aarch64")
    nowhere.parent.mkdir()
    nowhere.write_bytes(built[:18] + kind.to_bytes(2, sys.byteorder) + built[20:])
    assert f"{nowhere} is built for {name}, not for {platform.machine()}" in reason(caplog)


def test_a_library_in_the_package_is_taken_first(nowhere: Path, built: bytes) -> None:
    """As in a wheel or an image: no compiler, and a read-only directory."""
    nowhere.parent.mkdir()
    nowhere.write_bytes(built)
    assert library.library() == nowhere


_BUILD = """
import sys
from pathlib import Path
sys.prefix = sys.base_prefix  # ignores the library of this environment
from syncbn.native import compiler, library
compiler.PACKAGED = Path("none")
from syncbn.native.build import main
sys.exit(main([]))
"""


@pytest.mark.multiprocess
@pytest.mark.timeout(200)
def test_of_two_that_build_at_once_one_compiles_and_a_damaged_library_is_replaced(
    tmp_path: Path, single_process: Launcher, script: Callable[[str], Path]
) -> None:
    found = require_compiler()
    calls, counting = tmp_path / "calls", tmp_path / "c++"
    counting.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nexec {" ".join(found)} "$@" -O0\n')
    counting.chmod(0o755)
    target = tmp_path / "syncbn" / NAME
    target.parent.mkdir()
    target.write_bytes(b"\x7fELF, and no more")
    environment = {"CXX": str(counting), "XDG_CACHE_HOME": str(tmp_path)}
    program = script(_BUILD)
    jobs = [single_process.start(1, program, environment=environment) for _ in range(2)]
    for job in jobs:
        result = job.wait(180).check()
        assert result.stdout[0].splitlines()[-1] == str(target)
    assert compiler.damage(target, platform.machine()) is None
    linked = [line for line in calls.read_text().splitlines() if line.startswith("-shared")]
    assert len(linked) == 1
    assert sorted(path.name for path in target.parent.iterdir()) == sorted(["lock", NAME])


def test_the_compiler_needs_no_package(tmp_path: Path) -> None:
    """As when building a wheel: a Python, these sources, and the errors of a compiler."""
    program = Path(str(compiler.__file__))
    environment = {**os.environ, "CXX": "/nowhere/c++"}
    done = subprocess.run(
        [sys.executable, "-I", str(program), "--output", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("/nowhere/c++ cannot be run: ")
    assert list(tmp_path.iterdir()) == []
