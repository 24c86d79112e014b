"""`launcher install-horovod`, run as a user runs it, on machines that lack one thing each."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from launcher.horovod_build.build import cached_wheel, default_cache
from launcher.horovod_build.machine import find_recipe
from launcher.horovod_build.recipe import ARCHIVE
from tests.processes import REPOSITORY, find_executable
from tests.requirements import require_horovod, require_program_of_a_compiler

SITE_PACKAGES = Path(sysconfig.get_path("platlib"))


def install_horovod(
    *arguments: str, python: str | Path = sys.executable, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-m", "launcher", "install-horovod", *arguments],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


class Environment:
    """A virtual environment with the packages and programs of this one, less those left out."""

    def __init__(self, root: Path, without: tuple[str, ...]) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True)
        self.python = root / "bin" / "python"
        self.site_packages = root / SITE_PACKAGES.relative_to(sys.prefix)
        _link_all(SITE_PACKAGES, self.site_packages, without)
        _link_all(Path(sys.prefix, "bin"), root / "bin", without)
        _link_all(Path(sys.prefix, "lib"), root / "lib", without)
        # A separate PATH, so that the system's programs are not found.
        self.path = root / "path"
        self.path.mkdir()
        for name in {"c++", "make", "cmake", "mpirun", "mpicxx"} - set(without):
            if found := find_executable(name):
                (self.path / name).symlink_to(found)

    def install_horovod(
        self, *arguments: str, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return install_horovod(
            *arguments, python=self.python, **({"PATH": str(self.path)} | environment)
        )


def _link_all(source: Path, target: Path, without: tuple[str, ...]) -> None:
    for entry in source.iterdir():
        name = entry.name.lower()
        if not name.startswith(without) and not (target / entry.name).exists():
            (target / entry.name).symlink_to(entry)


def assert_refuses(
    result: subprocess.CompletedProcess[str], code: int, what: str, mend: str
) -> None:
    assert result.returncode == code, result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert what in result.stderr
    assert mend in result.stderr


@pytest.mark.parametrize(
    ("without", "what", "mend"),
    [
        pytest.param("tensorflow", "TensorFlow is not installed", "syncbn[cpu]", id="tensorflow"),
        pytest.param("c++", "no C++ compiler", "apt-get install g++", id="compiler"),
        pytest.param("make", "no make", "apt-get install make", id="make"),
        pytest.param("cmake", "no CMake", "syncbn[horovod]", id="cmake"),
        pytest.param("mpi", "no MPI", "syncbn[mpi]", id="mpi"),
    ],
)
def test_missing_tool_is_one_line_with_the_fix(
    tmp_path: Path, without: str, what: str, mend: str
) -> None:
    if without in {"make", "cmake"}:
        require_program_of_a_compiler()
    left_out = ("mpirun", "mpicxx") if without == "mpi" else (without,)
    environment = Environment(tmp_path / "venv", (*left_out, "horovod"))
    assert_refuses(environment.install_horovod("--cache-dir", str(tmp_path)), 2, what, mend)


def test_open_mpi_5_is_refused(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv", ("mpirun", "mpicxx", "horovod"))
    for name in ("mpirun", "mpicxx"):
        program = environment.path / name
        program.write_text("#!/bin/sh\necho 'mpirun (Open MPI) 5.0.7'\n")
        program.chmod(0o755)
    assert_refuses(environment.install_horovod(), 2, "Open MPI 5.0.7", "syncbn[mpi]")


def test_gpu_without_cuda_is_refused(tmp_path: Path) -> None:
    require_program_of_a_compiler()
    result = install_horovod(
        "--gpu", "--force", "--cache-dir", str(tmp_path), HOROVOD_CUDA_HOME=str(tmp_path)
    )
    assert_refuses(result, 2, "no nvcc", "HOROVOD_CUDA_HOME")


def test_cache_that_cannot_be_a_directory_is_refused(tmp_path: Path) -> None:
    require_program_of_a_compiler()
    file = tmp_path / "file"
    file.touch()
    result = install_horovod("--force", "--cache-dir", str(file))
    assert_refuses(result, 2, str(file), "--cache-dir")


def test_working_horovod_is_not_rebuilt() -> None:
    require_horovod()
    result = install_horovod()
    assert result.returncode == 0, result.stderr
    assert "is installed and works" in result.stdout


def test_cached_wheel_works_in_another_environment(tmp_path: Path) -> None:
    if cached_wheel(find_recipe(gpu=False), default_cache()) is None:
        pytest.skip("no wheel of this recipe in the cache")
    environment = Environment(tmp_path / "venv", ("horovod", "c++"))
    result = environment.install_horovod()
    assert result.returncode == 0, result.stderr
    assert "works, installed from" in result.stdout
    # Not only found by way of the environment that built it: its libmpi is the one beside it.
    (library,) = (environment.site_packages / "horovod" / "tensorflow").glob("mpi_lib*.so")
    linked = subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout
    (mpi,) = (line for line in linked.splitlines() if "libmpi.so" in line)
    assert str(environment.python.parents[1]) in mpi


@pytest.mark.multiprocess
@pytest.mark.parametrize("controller", ["--mpi", "--gloo"])
def test_horovodrun_starts_without_tensorflow(controller: str) -> None:
    require_horovod()
    horovodrun = find_executable("horovodrun")
    assert horovodrun is not None
    result = subprocess.run(
        [horovodrun, controller, "-np", "1", "true"],
        env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "horovod.runner.launch" in result.stderr
    assert "tensorflow" not in result.stderr


@pytest.mark.multiprocess
def test_horovodrun_needs_neither_an_activated_environment_nor_ssh(tmp_path: Path) -> None:
    require_horovod()
    horovodrun = find_executable("horovodrun")
    assert horovodrun is not None
    result = subprocess.run(
        [horovodrun, "-np", "2", sys.executable, "-c", "print('rank ran')"],
        env={"HOME": str(tmp_path), "PATH": str(tmp_path), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("rank ran") == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give the machine another name")
def test_gloo_needs_no_resolvable_host_name() -> None:
    # Horovod's process sets ignore HOROVOD_GLOO_IFACE and resolve that name; our edit fixes it.
    require_horovod()
    rename = ["unshare", "--uts", "sh", "-c", 'hostname no-such-host && exec "$0" "$@"']
    result = subprocess.run(
        [*rename, sys.executable, "-m", "launcher", "install-horovod"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "is installed and works" in result.stdout


def test_failed_build_is_reported_and_with_once_not_repeated_until_something_changes(
    tmp_path: Path,
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    archive = default_cache() / ARCHIVE
    if archive.exists():
        shutil.copy(archive, cache)
    environment = Environment(tmp_path / "venv", ("horovod", "c++"))
    compiler = environment.path / "c++"
    compiler.write_text("#!/bin/sh\necho 'c++: fatal error: no room for cc1plus' >&2\nexit 1\n")
    compiler.chmod(0o755)
    for name in ("sh", "rm", "uname"):
        (environment.path / name).symlink_to(find_executable(name) or name)
    result = environment.install_horovod("--cache-dir", str(cache))
    assert result.returncode == 1
    assert "is not able to compile a simple test program" in result.stderr
    (log,) = cache.glob("*.log")
    assert result.stderr.rstrip().endswith(f"The whole log: {log}")
    assert {path.name for path in cache.iterdir()} == {ARCHIVE, log.name}

    written = log.stat().st_mtime_ns
    result = environment.install_horovod("--once", "--cache-dir", str(cache))
    assert result.returncode == 1
    why, instead = result.stderr.splitlines()
    reason = f"c++: fatal error: no room for cc1plus (log: {log})"
    assert why == f"Horovod could not be built: {reason}"
    assert instead.startswith("Ranks communicate over MPI or tf.distribute instead")
    assert log.stat().st_mtime_ns == written, "the same build failed a second time"
    question = "from launcher.horovod_build.failure import why_missing; print(why_missing())"
    told = subprocess.run(
        [environment.python, "-c", question],
        cwd=REPOSITORY,
        env={"PATH": str(environment.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert told.stdout.strip() == reason

    compiler.write_text(compiler.read_text().replace("no room", "still no room"))
    result = environment.install_horovod("--once", "--cache-dir", str(cache))
    assert "still no room for cc1plus" in result.stderr.splitlines()[0]
    assert log.stat().st_mtime_ns != written

    compiler.unlink()
    result = environment.install_horovod("--once", "--cache-dir", str(cache))
    assert result.returncode == 2
    assert "could not be built: no C++ compiler" in result.stderr.splitlines()[0]


def test_damaged_source_is_not_built(tmp_path: Path) -> None:
    require_program_of_a_compiler()
    (tmp_path / ARCHIVE).write_bytes(b"not the archive")
    # Without an index the source cannot be downloaded again.
    result = install_horovod("--force", "--cache-dir", str(tmp_path), PIP_NO_INDEX="1")
    assert result.returncode == 1
    assert "pip download failed" in result.stderr
