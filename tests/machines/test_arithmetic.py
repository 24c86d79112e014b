"""The arithmetic of the kernels on other processors: the same bits as on this one, near the oracle.

Processors are emulated by qemu-user; each runs `arithmetic_program.cc`, linked with the very object
files of which the library is made.
"""

import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from syncbn.native import compiler
from tests.syncbn import oracle
from tests.syncbn.oracle import relative_error

pytestmark = [pytest.mark.machines, pytest.mark.timeout(600)]

_PROGRAM = Path(__file__).with_name("arithmetic_program.cc")
_X86 = platform.machine() == "x86_64"
_TYPES = [np.dtype(kind) for kind in ("float16", ml_dtypes.bfloat16, "float32", "float64")]
# (outer, channels, inner): folded and not, whole blocks and rests, tails of every vector.
_SHAPES = [(40, 7, 1), (700, 24, 1), (9, 1031, 1), (150_000, 2, 1), (5, 3, 37), (3, 2, 50_001)]
_QUANTITIES = (
    "wire",
    "moments",
    "mean",
    "variance",
    "y",
    "backward",
    "dgamma",
    "dbeta",
    "dx",
    "through",
)
Run = Callable[..., subprocess.CompletedProcess[bytes]]


@dataclass(frozen=True)
class Case:
    """One training step: its data, and what it gives on a processor."""

    kind: np.dtype
    shape: tuple[int, int, int]
    special: bool = False  # weights, a residual and a leaky ReLU

    def __str__(self) -> str:
        kind = f"{self.kind.name}-{'x'.join(map(str, self.shape))}"
        return f"{kind}-special" if self.special else kind

    @property
    def computed(self) -> np.dtype:
        return np.dtype("float64" if self.kind == np.float64 else "float32")

    @cached_property
    def data(self) -> list[np.ndarray]:
        """x, dy, gamma, beta, moving mean and variance, weights and the residual."""
        random = np.random.default_rng(self.shape)
        channels = self.shape[1]
        far = 3.0 if self.kind.itemsize == 2 else 1e3
        x, dy = (random.normal(mean, size=self.shape).astype(self.kind) for mean in (far, 0.1))
        small = [random.uniform(0.5, 2.0, channels).astype(self.computed) for _ in range(4)]
        positions = (self.shape[0], self.shape[2]) if self.special else (0, 0)
        weights = random.choice([0.0, 0.5, 1.0, 3.0], positions).astype(self.computed)
        residual = random.normal(size=self.shape if self.special else 0).astype(self.kind)
        return [x, dy, *small, weights, residual]

    def ask(self, run: Run, level: str = "") -> tuple[str, dict[str, np.ndarray]]:
        """The level that was used, and the results."""
        header = np.array(
            [
                _TYPES.index(self.kind),
                *self.shape,
                self.kind.itemsize,
                self.computed.itemsize,
                self.special,
            ]
        )
        source = b"".join(part.tobytes() for part in (header, *self.data))
        done = run(level, input=source)
        assert done.returncode == 0, done.stderr
        channels, size = self.shape[1], int(np.prod(self.shape))
        kinds = {"y": self.kind, "dx": self.kind, "through": self.kind} | dict.fromkeys(
            ("wire", "moments", "backward"), np.dtype("float64")
        )
        sizes = {"wire": 4 * channels + 2, "moments": 3 * channels + 1, "backward": 2 * channels}
        sizes |= {"y": size, "dx": size, "through": size}
        results, start = {}, 0
        for name in _QUANTITIES:
            kind, count = kinds.get(name, self.computed), sizes.get(name, channels)
            results[name] = np.frombuffer(done.stdout, kind, count, start)
            start += results[name].nbytes
        assert start == len(done.stdout)
        return _last_line(done), results


def _last_line(done: subprocess.CompletedProcess[bytes]) -> str:
    """Of what the program says; before it qemu may name what it does not emulate."""
    return done.stderr.decode().splitlines()[-1]


CASES = [
    *(Case(kind, shape) for kind in _TYPES for shape in _SHAPES),
    *(Case(kind, shape, special=True) for kind in _TYPES for shape in _SHAPES),
]


def _needs(*programs: str) -> None:
    packages = {"qemu-x86_64": "qemu-user", "qemu-aarch64": "qemu-user"}
    packages["aarch64-linux-gnu-g++"] = "g++-aarch64-linux-gnu"
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"no {program}: apt-get install {packages[program]}")


def _build(command: list[str], machine: str, directory: Path) -> Path:
    objects = compiler.compile_objects(command, machine, directory)
    program = directory / "arithmetic"
    sources = [str(_PROGRAM), "-I", str(Path(str(compiler.__file__)).parent), *map(str, objects)]
    compiler.run([*command, "-std=c++17", "-O1", *sources, "-pthread", "-ldl", "-o", str(program)])
    return program


def _runner(*command: str) -> Run:
    def run(level: str, **options: bytes) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*command, level], capture_output=True, check=False, timeout=300, **options
        )  # type: ignore[call-overload]

    return run


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program for the processors of this machine's kind."""
    command = compiler.find_compiler()
    if command is None:
        pytest.skip("no C++ compiler: apt-get install g++")
    return _build(command, platform.machine(), tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="module")
def reference(program: Path) -> dict[Case, dict[str, np.ndarray]]:
    """The results of this processor at its best."""
    return {case: case.ask(_runner(str(program)))[1] for case in CASES}


def _check_bits(reference: dict[Case, dict[str, np.ndarray]], run: Run, level: str) -> None:
    for case, expected in reference.items():
        used, found = case.ask(run)
        assert used == level
        for name in _QUANTITIES:
            assert found[name].tobytes() == expected[name].tobytes(), f"{case}: {name}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_this_processor_beside_the_oracle(
    case: Case, reference: dict[Case, dict[str, np.ndarray]]
) -> None:
    x, dy, gamma, beta, mean, variance, weights, residual = case.data
    count, y = float(x.size // case.shape[1]), None
    if case.special:
        spread = np.broadcast_to(weights[:, None, :], x.shape)
        count = float(np.asarray(weights, "float64").sum())
        y = oracle.normalize(x, dy, gamma, beta, 1, weights=spread).outputs
        y = y + np.asarray(residual, "float64")
        slopes = np.where(y > 0, 1.0, 0.2).astype(case.computed)
        # Rounded to the type of the tensors, as the gradient of a layer of its own would be.
        dy = (slopes * np.asarray(dy, case.computed)).astype(case.kind)
        exact = oracle.normalize(x, dy, gamma, beta, 1, weights=spread)
        y = np.where(y > 0, y, 0.2 * y)
    else:
        exact = oracle.normalize(x, dy, gamma, beta, 1)
    found, channels = reference[case], case.shape[1]
    half, single = case.kind.itemsize == 2, case.computed == np.float32
    of_sums = 2e-6 if single else 1e-12
    of_values = {"float16": 1e-3, "bfloat16": 8e-3}.get(case.kind.name, of_sums)
    next_variance = 0.9 * variance + 0.1 * exact.moments.variance
    for name, ours, expected, limit in (
        ("mean", found["moments"][1 : 1 + channels], exact.moments.mean, of_sums),
        (
            "variance",
            found["moments"][1 + channels : 1 + 2 * channels],
            exact.moments.variance,
            of_sums,
        ),
        ("moving mean", found["mean"], 0.9 * mean + 0.1 * exact.moments.mean, of_sums),
        ("moving variance", found["variance"], next_variance, of_sums),
        ("dgamma", found["dgamma"], exact.dgamma.sum(axis=(0, 2)), of_sums),
        ("dbeta", found["dbeta"], exact.dbeta.sum(axis=(0, 2)), of_sums),
        ("y", found["y"].reshape(x.shape), exact.outputs if y is None else y, of_values),
        ("dx", found["dx"].reshape(x.shape), exact.dx, of_values),
        ("through", found["through"].reshape(x.shape), dy, of_values),
    ):
        assert relative_error(ours, expected) < limit, name
    assert found["moments"][0] == count
    assert half == (found["y"].itemsize == 2)


@pytest.mark.skipif(not _X86, reason="levels are a matter of x86-64")
@pytest.mark.parametrize("level", ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
def test_every_level_gives_the_same_bits(
    level: str, program: Path, reference: dict[Case, dict[str, np.ndarray]]
) -> None:
    run = _runner(str(program))
    if run(level, input=b"").returncode == 2:
        pytest.skip(f"this processor has no {level}")
    _check_bits(reference, lambda _, **options: run(level, **options), level)


@pytest.mark.skipif(not _X86, reason="needs the program for x86-64")
@pytest.mark.parametrize(
    ("processor", "level", "above"),
    [("Nehalem", "x86-64-v2", "x86-64-v3"), ("Haswell", "x86-64-v3", "x86-64-v4")],
)
def test_older_processors(
    processor: str,
    level: str,
    above: str,
    program: Path,
    reference: dict[Case, dict[str, np.ndarray]],
) -> None:
    _needs("qemu-x86_64")
    run = _runner("qemu-x86_64", "-cpu", processor, str(program))
    _check_bits(reference, run, level)
    refused = run(above, input=b"")
    assert refused.returncode == 2
    assert _last_line(refused) == (
        f"SYNCBN_MARCH={above} asks for instructions that this processor lacks: "
        f"it has those of {level}"
    )


@pytest.mark.skipif(not _X86, reason="needs the program for x86-64")
def test_a_processor_below_all_levels(program: Path) -> None:
    _needs("qemu-x86_64")
    done = _runner("qemu-x86_64", "-cpu", "qemu64", str(program))("", input=b"")
    assert done.returncode == 2
    expected = "this processor is below x86-64-v2, the least that the kernels need"
    assert _last_line(done) == expected


def test_aarch64(
    reference: dict[Case, dict[str, np.ndarray]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    _needs("qemu-aarch64", "aarch64-linux-gnu-g++")
    built = _build(["aarch64-linux-gnu-g++"], "aarch64", tmp_path_factory.mktemp("aarch64"))
    run = _runner("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", str(built))
    _check_bits(reference, run, "aarch64")
