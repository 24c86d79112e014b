"""The Makefile's set-up under dash and busybox, on machines with other Pythons or without compiler.

The Pythons are small scripts that answer what the set-up asks of them, each in a PATH of its own.
"""

import shutil
import subprocess
from importlib.metadata import metadata
from pathlib import Path

import pytest

from tests.processes import REPOSITORY

SHELLS = ["dash", "busybox"]
TOOLS = ("cat", "chmod", "cp", "env", "make", "mkdir", "rm", "touch", "uname")
# What it is asked goes into a file, but for the questions about itself.
PYTHON = """\
#!{sh}
case "$*" in
    *version_info*) echo {version} ;;
    *ensurepip*) exit {incomplete} ;;
    *"-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python && chmod +x .venv/bin/python ;;
    *install-horovod*) echo install-horovod >>asked; [ ! -e no-horovod ] ;;
    *native.build*)
        echo "native $CXX" >>asked
        if [ -n "$CXX" ]; then [ ! -e no-zig ]; else [ ! -e no-native ]; fi ;;
    *) echo "$*" >>asked ;;
esac
"""


class Machine:
    """A checkout's Makefile, a PATH with the tools of `TOOLS` alone, and one shell."""

    def __init__(self, directory: Path, shell: str) -> None:
        self.path, self.checkout = directory / "path", directory / "checkout"
        self.path.mkdir()
        for name in TOOLS:
            self._link(name, name)
        self._link(shell, "sh")
        (self.checkout / ".ci").mkdir(parents=True)
        for name in ("Makefile", "constraints.txt", "pyproject.toml", ".ci/find-python"):
            shutil.copy(REPOSITORY / name, self.checkout / name)

    def _link(self, name: str, link: str) -> None:
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"no {name}: apt-get install {name}")
        (self.path / link).symlink_to(found)

    def python(self, name: str, version: str, incomplete: bool = False) -> Path:
        """Puts a Python of this version there; one that is incomplete has no ensurepip."""
        script = self.path / name
        sh = self.path / "sh"
        script.write_text(PYTHON.format(sh=sh, version=version, incomplete=int(incomplete)))
        script.chmod(0o755)
        return script

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(self.path / "sh"), "-c", '"$@"', "sh", *command],
            cwd=self.checkout,
            env={"PATH": str(self.path)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def find(self, named: str = "") -> "subprocess.CompletedProcess[str]":
        return self.run(str(self.path / "sh"), ".ci/find-python", named)

    def make(self, target: str) -> "subprocess.CompletedProcess[str]":
        return self.run("make", f"SHELL={self.path / 'sh'}", target)

    def asked(self) -> list[str]:
        """What Pythons were asked since the last time."""
        file = self.checkout / "asked"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return lines


@pytest.fixture(params=SHELLS)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    return Machine(tmp_path, request.param)


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_python3_is_taken_where_it_will_do(machine: Machine, version: str) -> None:
    machine.python("python3.12", "3.12")
    expected = machine.python("python3", version)
    assert machine.find().stdout.strip() == str(expected)


def test_another_python_is_taken_where_python3_will_not_do(machine: Machine) -> None:
    machine.python("python3", "3.14")
    machine.python("python3.13", "3.13", incomplete=True)
    expected = machine.python("python3.11", "3.11")
    assert machine.find().stdout.strip() == str(expected)


def test_named_python_is_taken_or_refused(machine: Machine) -> None:
    machine.python("python3", "3.12")
    named = machine.python("a python", "3.13")
    assert machine.find(str(named)).stdout.strip() == str(named)
    assert "sh cannot be run as a Python" in machine.find("sh").stderr
    assert " old is 3.10." in _refusal(machine, machine.python("old", "3.10").name)


@pytest.mark.parametrize("version", ["2.7", "3.10", "3.14"])
def test_only_another_python_is_told(machine: Machine, version: str) -> None:
    machine.python("python3", version)
    said = _refusal(machine)
    assert f"wheels for Python 3.11 to 3.13. python3 is {version}." in said
    assert "make PYTHON=" in said


def test_no_python_is_told(machine: Machine) -> None:
    assert "apt-get install python3 python3-venv" in _refusal(machine)
    made = machine.make("train")
    assert made.returncode == 2
    assert "No Python here" in made.stderr
    assert not (machine.checkout / ".venv").exists()


def test_python_without_venv_is_told(machine: Machine) -> None:
    machine.python("python3", "3.13", incomplete=True)
    assert "apt-get install python3.13-venv" in _refusal(machine)


def test_pythons_accepted_are_those_of_the_pinned_tensorflow(tmp_path: Path) -> None:
    minors = [
        int(line.rpartition(".")[2])
        for line in metadata("tensorflow_cpu").get_all("Classifier", [])
        if line.startswith("Programming Language :: Python :: 3.")
    ]
    script = (REPOSITORY / ".ci" / "find-python").read_text()
    assert f"newest={max(minors)}\n" in script
    assert f"oldest={max(11, min(minors))}\n" in script  # 3.11: requires-python


def test_train_goes_over_horovod_once_it_is_built_and_over_mpi_until_then(machine: Machine) -> None:
    machine.python("python3", "3.13")
    (machine.checkout / "no-horovod").touch()
    for name in ("no-native", "no-zig"):
        (machine.checkout / name).touch()
    made = machine.make("setup")
    assert made.returncode == 0, made.stderr
    asked = machine.asked()
    assert asked[-4:-2] == ["install-horovod", "native "]
    assert "install --quiet --constraint constraints.txt ziglang" in asked[-2]
    assert asked[-1].endswith(".venv/bin/python -m ziglang c++")
    assert "TensorFlow operations instead" in made.stderr
    for name in ("mpirun", "horovodrun"):
        program = machine.checkout / ".venv" / "bin" / name
        program.write_text(
            f'#!{machine.path / "sh"}\necho {name} "$*" root=$OMPI_ALLOW_RUN_AS_ROOT\n'
        )
        program.chmod(0o755)

    made = machine.make("train")
    assert made.returncode == 0, made.stderr
    said = made.stdout.splitlines()[-1]
    assert said.startswith("mpirun --oversubscribe")
    assert said.endswith("-m launcher.train --norm sync root=1")
    assert machine.asked()[:2] == ["install-horovod", "native "]  # both are looked for again

    (machine.checkout / "no-horovod").unlink()
    (machine.checkout / "no-zig").unlink()
    made = machine.make("train")
    assert made.stdout.splitlines()[-1].startswith("horovodrun -np 2 ")
    assert "TensorFlow operations" not in made.stderr  # zig has built the kernels
    assert len(machine.asked()) == 4
    assert machine.make("train").returncode == 0
    assert machine.asked() == []  # set-up is done


def test_environment_whose_python_is_gone_is_made_again(machine: Machine) -> None:
    machine.python("python3", "3.13")
    assert machine.make("setup").returncode == 0
    machine.asked()
    (machine.checkout / ".venv" / "bin" / "python").unlink()
    assert machine.make("setup").returncode == 0
    asked = machine.asked()
    assert any("--editable" in line for line in asked)
    assert asked[-2:] == ["install-horovod", "native "]


def test_shell_scripts_are_posix() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck: apt-get install shellcheck")
    scripts = [str(REPOSITORY / ".ci" / "find-python"), str(REPOSITORY / "docker" / "serve-ssh")]
    done = subprocess.run(
        ["shellcheck", *scripts], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout


def _refusal(machine: Machine, named: str = "") -> str:
    done = machine.find(named)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line
