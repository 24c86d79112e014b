"""The tools to build Horovod: the installed TensorFlow, a C++ compiler, CMake, MPI, CUDA for GPUs.

A missing tool is an error that names the command to install it.
"""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from launcher.errors import MissingToolError
from launcher.horovod_build.recipe import Recipe

SCRIPTS = Path(sys.executable).parent
PACKAGES = Path(sysconfig.get_path("platlib"))


def find_recipe(gpu: bool) -> Recipe:
    """The recipe for this interpreter, its TensorFlow and the first MPI found.

    Raises:
        MissingToolError: TensorFlow or a usable MPI is missing.
    """
    name, libraries = _find_mpi()
    return Recipe(
        tensorflow=tensorflow_version(),
        python=f"cp{sys.version_info.major}{sys.version_info.minor}{sys.abiflags}",
        machine=platform.machine(),
        mpi=name,
        mpi_libraries=libraries,
        gpu=gpu,
    )


def tensorflow_version() -> str:
    """The version of the installed TensorFlow, from whichever of its distributions."""
    for name in importlib.metadata.packages_distributions().get("tensorflow", []):
        return importlib.metadata.version(name)
    raise MissingToolError(
        "TensorFlow is not installed, and Horovod is built against it. "
        "Install it: pip install 'syncbn[cpu]' (or 'syncbn[gpu]')"
    )


def check_build_tools(gpu: bool) -> None:
    """Raises MissingToolError for the first missing tool that only a build needs."""
    if find_program(compiler()) is None:
        raise MissingToolError(
            f"no C++ compiler ({compiler()}), and Horovod is compiled here. "
            "Install one: apt-get install g++"
        )
    if find_program("make") is None:
        raise MissingToolError("no make. Install it: apt-get install make")
    _check_cmake()
    if gpu:
        _check_cuda()


def compiler() -> str:
    """The C++ compiler that CMake uses: the one that CXX names, else c++."""
    return os.environ.get("CXX") or "c++"


def c_compiler(cxx: str) -> str:
    """The C compiler that comes with a C++ compiler: Gloo needs both.

    Debian's g++-13 alone has no `cc`, where CMake would look for it.
    """
    directory, name = os.path.split(cxx)
    for both, c in (("clang++", "clang"), ("g++", "gcc"), ("c++", "cc")):
        if both in name:
            return os.path.join(directory, name.replace(both, c))
    return "cc"


def build_environment(recipe: Recipe) -> dict[str, str]:
    """The environment of the build: this one, with our programs first on PATH and the switches."""
    environment = {
        name: text
        for name, text in os.environ.items()
        if not name.startswith(("HOROVOD_WITH", "HOROVOD_GPU"))
    }
    # Under `make`, MFLAGS and MAKEFLAGS would override the number of jobs.
    environment.pop("MFLAGS", None)
    environment["MAKEFLAGS"] = f"-j{len(os.sched_getaffinity(0))}"
    environment["PATH"] = os.pathsep.join([str(SCRIPTS), environment.get("PATH", os.defpath)])
    environment["HOROVOD_LOCAL_VERSION"] = recipe.label
    if "CC" not in environment and find_program("cc") is None:
        environment["CC"] = c_compiler(compiler())
    if recipe.gpu and (nvcc := _find_nvcc()) is not None:
        environment.setdefault("HOROVOD_CUDA_HOME", str(nvcc.parent.parent))
    return environment | recipe.switches


def find_program(name: str) -> Path | None:
    """The program beside this interpreter, else on PATH, as the build finds it."""
    found = shutil.which(name, path=str(SCRIPTS)) or shutil.which(name)
    return Path(found) if found else None


def version_text(program: Path) -> str:
    """The output of the program for --version."""
    try:
        answer = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=30, check=False
        )
    except OSError as error:
        return f"{program} cannot be run: {error.strerror}"
    return answer.stdout.strip() or f"{program} --version printed nothing"


def _find_mpi() -> tuple[str, str]:
    mpicxx, mpirun = find_program("mpicxx"), find_program("mpirun")
    if mpicxx is None or mpirun is None:
        raise MissingToolError("no MPI (mpicxx, mpirun). Install it: pip install 'syncbn[mpi]'")
    lines = version_text(mpirun).splitlines()
    # Open MPI: "mpirun (Open MPI) 4.1.8"; MPICH: "HYDRA build details:", then "    Version: 4.0.2".
    if found := re.match(r"mpirun \(Open MPI\) (\d+)(\S*)", lines[0]):
        if int(found[1]) >= 5:
            raise MissingToolError(
                f"{mpirun} is Open MPI {found[1]}{found[2]}, and horovodrun only works with 4. "
                "Install it beside this Python: pip install 'syncbn[mpi]'"
            )
        name = f"open-mpi-{found[1]}{found[2]}"
    else:
        name = "-".join(" ".join(lines[:2]).replace(":", " ").split())
    libraries = mpicxx.parent.parent / "lib"
    if mpicxx.parent != SCRIPTS:
        return name, str(libraries)
    return name, os.path.relpath(libraries, Path(PACKAGES, "horovod", "tensorflow"))


def _check_cmake() -> None:
    install = "Install it beside this Python: pip install 'syncbn[horovod]'"
    cmake = find_program("cmake")
    if cmake is None:
        raise MissingToolError(f"no CMake. {install}")
    found = re.search(r"version (\d+)\.(\d+)\S*", version_text(cmake))
    if found is None or not (3, 13) <= (int(found[1]), int(found[2])) < (4, 0):
        received = found[0] if found else "no version"
        raise MissingToolError(
            f"Horovod needs CMake from 3.13 up to 3.x. Received: {received} from {cmake}. {install}"
        )


def _find_nvcc() -> Path | None:
    home = os.environ.get("HOROVOD_CUDA_HOME")
    if home:
        return Path(home, "bin", "nvcc") if Path(home, "bin", "nvcc").exists() else None
    standard = Path("/usr/local/cuda/bin/nvcc")
    return find_program("nvcc") or (standard if standard.exists() else None)


def _check_cuda() -> None:
    nvcc = _find_nvcc()
    if nvcc is None:
        raise MissingToolError(
            "no nvcc, and --gpu compiles CUDA kernels. Install NVIDIA's cuda-toolkit, "
            "or set HOROVOD_CUDA_HOME to the directory with bin/nvcc"
        )
    homes = (os.environ.get("HOROVOD_NCCL_HOME"), nvcc.parent.parent, "/usr", "/usr/local")
    if not any(Path(home, "include", "nccl.h").exists() for home in homes if home):
        raise MissingToolError(
            "no NCCL (nccl.h), which --gpu uses for collectives. Install NVIDIA's libnccl-dev, "
            "or set HOROVOD_NCCL_HOME to the directory with include/nccl.h"
        )
