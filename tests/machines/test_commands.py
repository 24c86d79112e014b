"""README's two commands on other machines: Debian 12, 13 and sid, with, without and with a broken
compiler.

`make test-machines` runs all of it; CI runs `test_train` on Debian 13.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.machines import roots
from tests.machines.machine import CHECKOUT, Machine

pytestmark = pytest.mark.machines

_BROKEN = "#!/bin/sh\necho 'g++: fatal error: cannot execute cc1plus' >&2\nexit 1\n"
# What does not hang on the machine is tested by `make test` already.
_SELECTION = "tests/test_set_up.py tests/syncbn/test_moments.py tests/syncbn/test_native_library.py"


@dataclass(frozen=True)
class Variant:
    """A Debian and what it has of a compiler: `with`, `without` or `broken`."""

    suite: str
    compiler: str

    def __str__(self) -> str:
        return f"{self.suite}-{self.compiler}"

    @property
    def launcher(self) -> str:
        """What starts the ranks of `make train` there."""
        return "horovodrun" if self.compiler == "with" else "mpirun"

    @property
    def reason(self) -> str:
        """Why Horovod is not built there."""
        return "no C++ compiler" if self.compiler == "without" else "cannot execute cc1plus"


VARIANTS = [
    Variant(suite, compiler)
    for suite in ("trixie", "bookworm", "sid")
    for compiler in ("with", "without", "broken")
]


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def variant(request: pytest.FixtureRequest) -> Variant:
    chosen: Variant = request.param
    return chosen


@pytest.fixture(scope="module")
def machine(variant: Variant, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The machine before anybody has typed a command; one for all tests of a variant."""
    if (missing := roots.lacks()) is not None:
        pytest.skip(missing)
    one = Machine(variant.suite, tmp_path_factory.mktemp(str(variant)) / "root")
    try:
        one.checkout()
        if variant.compiler == "with":
            one.install("g++")
        if variant.compiler == "broken":
            for name in ("g++", "c++"):
                one.program(f"/usr/local/bin/{name}", _BROKEN)
        yield one
    finally:
        one.close()


@pytest.mark.timeout(1800)
def test_train(machine: Machine, variant: Variant) -> None:
    if variant.suite == "sid":
        _only_a_newer_python(machine)
    made = machine.run("make train ARGS='--output runs/first'", seconds=1500).check()
    summary = json.loads(_file(machine, "runs/first/summary.json"))
    assert summary["accuracy"] > 0.97
    assert (summary["world_size"], summary["backend"]) in ((2, "mpi"), (2, "horovod"))
    assert f".venv/bin/{variant.launcher} " in made.output
    assert summary["kernels"]["path"] == "native", summary["kernels"]

    doctor = machine.run(".venv/bin/python -m launcher doctor --json", seconds=300).check()
    lines = [line for line in doctor.output.splitlines() if line.startswith("{")]
    found = {finding["name"]: finding for finding in map(json.loads, lines)}
    assert found["self-test"]["state"] == "ok", found["self-test"]
    if variant.compiler == "with":
        assert found["Horovod"]["state"] == "ok", found["Horovod"]
    else:
        [told] = [line for line in made.output.splitlines() if "Horovod could not be built" in line]
        assert variant.reason in told
        assert variant.reason in found["Horovod"]["text"]

    again = machine.run(f"make test ARGS='{_SELECTION}'", seconds=600).check()
    assert "Building" not in again.output, "set-up repeats what failed or what is done"
    if variant.compiler != "with":
        assert variant.reason in again.output


@pytest.mark.timeout(3000)
def test_fast_tests(machine: Machine, variant: Variant) -> None:
    tested = machine.run("make test-fast", seconds=2700).check()
    if variant.compiler != "with":
        skipped = tested.output.partition("TESTS DID NOT RUN")[2]
        assert variant.reason in skipped


def _only_a_newer_python(machine: Machine) -> None:
    """On sid: what make says to Python 3.14 alone; then Debian 13's Python beside it."""
    version = machine.run("python3 --version", seconds=20).check().output.split()[1]
    if version.startswith("3.13."):
        return
    refused = machine.run("make train", seconds=60)
    assert refused.code == 2
    assert f"python3 is {version.rpartition('.')[0]}." in refused.output
    sources = machine.path("/etc/apt/sources.list")
    older = sources.read_text().replace(" sid ", " trixie ")
    machine.path("/etc/apt/sources.list.d/trixie.list").write_text(older)
    machine.install("python3.13-venv")


def _file(machine: Machine, name: str) -> str:
    return Path(machine.path(CHECKOUT), name).read_text()
