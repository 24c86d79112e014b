"""What is found out about hosts before anything starts on them."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.launcher import networks
from tests.launcher.launches import Launch, first_line


@pytest.fixture
def differing(tmp_path: Path) -> Iterator[Callable[[Path, Path], networks.Network]]:
    """Creates two hosts, of which the second has one different file."""
    lacking = networks.missing()
    if lacking is not None:
        pytest.skip(lacking)
    made: list[networks.Network] = []

    def make(other: Path, place: Path) -> networks.Network:
        made.append(networks.Network(tmp_path / "ssh", 2, {1: (other, place)}))
        return made[-1]

    yield make
    for network in made:
        network.close()


def refused(launch: Launch, network: networks.Network, program: list[str]) -> str:
    """The first line on a job that must not start."""
    hosts = ",".join(f"{host}:1" for host in network.hosts)
    options = ["--hosts", hosts, "--ssh", network.ssh, "--backend", "local"]
    launch.start(options, program)
    result = launch.finish()
    assert result.returncode == 2, result.transcript()
    assert not launch.output.exists(), "nothing was started, so nothing is recorded"
    return first_line(result).removeprefix("launcher: ")


@pytest.mark.timeout(60)
def test_other_code(
    launch: Launch, differing: Callable[[Path, Path], networks.Network], tmp_path: Path
) -> None:
    mine, theirs = tmp_path / "train.py", tmp_path / "older.py"
    mine.write_text("print(2)")
    theirs.write_text("print(1)")
    network = differing(theirs, mine)
    line = refused(launch, network, ["python", str(mine)])
    assert line.startswith(f"host {network.hosts[1]}: {mine} differs from the one here; copy it: ")


@pytest.mark.timeout(60)
def test_other_launcher(
    launch: Launch, differing: Callable[[Path, Path], networks.Network], tmp_path: Path
) -> None:
    import launcher

    theirs = tmp_path / "older.py"
    theirs.write_text('"""An older launcher."""\n')
    network = differing(theirs, Path(launcher.__file__))
    line = refused(launch, network, ["python", "-c", "pass"])
    assert line.startswith(f"host {network.hosts[1]}: launcher differs from the one here")


@pytest.mark.timeout(60)
def test_no_such_python(
    launch: Launch, differing: Callable[[Path, Path], networks.Network], tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.touch(mode=0o644)
    network = differing(empty, Path(sys.executable).resolve())
    line = refused(launch, network, ["python", "-c", "pass"])
    assert line.startswith(f"host {network.hosts[1]} has no {sys.executable}")
