"""Compiles the library of kernels; needs a C++ compiler, but neither TensorFlow nor this package.

The arithmetic is compiled once per instruction set level, everything else once, for the lowest
level; the objects are linked into one library. `python syncbn/native/compiler.py --output DIR`
works without TensorFlow.
"""

import argparse
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_DIRECTORY = Path(__file__).parent
PACKAGED = _DIRECTORY / "lib"
_ARITHMETIC = "arithmetic.cc"
_TIMEOUT_SECONDS = 600

# Function table in levels.cc → its compiler flags.
_LEVELS = {
    "x86_64": {
        "x86_64_v2": ["-march=x86-64-v2"],
        "x86_64_v3": ["-march=x86-64-v3"],
        "x86_64_v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    }
}
_BASELINE: dict[str, list[str]] = {"baseline": []}

# No contraction to fused multiply-adds, so that results are bitwise equal on all processors: ranks
# may run on different ones.
_FLAGS = [
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti"),
    *("-ffp-contract=off", "-fno-math-errno"),
]
_LINK = ["-shared", "-Wl,--as-needed"]

# Machine → e_machine in the ELF header.
_ELF_MACHINES = {"x86_64": 62, "aarch64": 183, "ppc64le": 21, "s390x": 22, "riscv64": 243}

# Appended to the library: this mark and the digest of all preceding bytes.
_MARK = b"syncbn kernels, SHA-256: "


class BuildError(Exception):
    """The library cannot be built or run here; the message tells what is missing."""


def file_name(machine: str) -> str:
    """The file name of the library, with a digest of sources and flags."""
    parts = [machine, repr(_levels(machine)), repr(_FLAGS), repr(_LINK)]
    parts += [path.read_text() for path in sorted(_DIRECTORY.glob("*.[ch]*"))]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return f"syncbn-{machine}-{digest[:16]}.so"


def places() -> list[Path]:
    """Directories of libraries: the package, the environment, the user's cache."""
    return [PACKAGED, beside_packages(), *caches_of_user()]


def beside_packages() -> Path:
    """The directory in the Python environment; container images use it, too."""
    return Path(sys.prefix) / "lib" / "syncbn"


def caches_of_user() -> list[Path]:
    """The user's cache directory; none for a container user without a home."""
    try:
        return [Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "syncbn"]
    except RuntimeError:
        return []


def found() -> Path | None:
    """The library for this machine, if it has been built and is not damaged."""
    machine = platform.machine()
    files = [place / file_name(machine) for place in places()]
    return next((file for file in files if file.exists() and damage(file, machine) is None), None)


def _levels(machine: str) -> dict[str, list[str]]:
    return _LEVELS.get(machine, _BASELINE)


def find_compiler() -> list[str] | None:
    """The command of a C++ compiler: CXX, or the first one installed; None without any."""
    if named := shlex.split(os.environ.get("CXX", "")):
        return named
    found = (shutil.which(name) for name in ("g++", "clang++", "c++"))
    return next(([path] for path in found if path is not None), None)


def damage(library: Path, machine: str) -> str | None:
    """What is wrong with a library, or None. Check before loading.

    Accessing the missing part of a truncated library would kill the process (SIGBUS).
    """
    content = library.read_bytes()
    if content[:4] != b"\x7fELF":
        return f"{library} is not a library"
    kind = int.from_bytes(content[18:20], "little" if content[5] == 1 else "big")
    if machine in _ELF_MACHINES and kind != _ELF_MACHINES[machine]:
        names = {number: name for name, number in _ELF_MACHINES.items()}
        return f"{library} is built for {names.get(kind, 'another machine')}, not for {machine}"
    end = len(content) - len(_MARK) - hashlib.sha256().digest_size
    if content[end:] != _MARK + hashlib.sha256(content[: max(end, 0)]).digest():
        return f"{library} is damaged or cut short"
    return None


def build(target: Path, machine: str) -> None:
    """Builds the library `target` for `machine`, atomically.

    Raises:
        BuildError: There is no compiler, or it failed.
        OSError: `target` cannot be written.
    """
    compiler = find_compiler()
    if compiler is None:
        raise BuildError(
            "no C++ compiler to build the kernels with. Install g++, then run: "
            "python -m syncbn.native.build"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        built = Path(directory) / target.name
        _compile(compiler, machine, built)
        with built.open("r+b") as file:
            digest = hashlib.sha256(file.read()).digest()
            file.write(_MARK + digest)
            file.flush()
            os.fsync(file.fileno())
        built.chmod(0o755)
        built.replace(target)


def _compile(compiler: list[str], machine: str, target: Path) -> None:
    objects = compile_objects(compiler, machine, target.parent)
    # zig would compile its C++ standard library first, which is not used.
    link = [*_LINK, *(["-nostdlib++"] if _is_zig(compiler) else [])]
    run([*compiler, *link, *map(str, objects), "-pthread", "-ldl", "-o", str(target)])


def compile_objects(compiler: list[str], machine: str, directory: Path) -> list[Path]:
    """Compiles all sources, the arithmetic once per level, and returns the object files."""
    objects, commands = [], []
    for level, flags in _levels(machine).items():
        if _is_zig(compiler):  # which uses underscores in the names of levels
            flags = [flag.replace("-march=x86-64-", "-march=x86_64_") for flag in flags]
        objects.append(directory / f"{level}.o")
        commands.append(
            [*_FLAGS, *flags, f"-DSYNCBN_LEVEL={level}", "-c", _ARITHMETIC, "-o", str(objects[-1])]
        )
    for source in sorted(path.name for path in _DIRECTORY.glob("*.cc")):
        if source != _ARITHMETIC:
            objects.append(directory / f"{source}.o")
            commands.append([*_FLAGS, "-c", source, "-o", str(objects[-1])])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in [pool.submit(run, [*compiler, *command]) for command in commands]:
            done.result()
    return objects


def _is_zig(compiler: list[str]) -> bool:
    return any("zig" in word for word in compiler)


def run(command: list[str]) -> None:
    """Runs a compiler in the source directory.

    Raises:
        BuildError: It failed; the message has its first errors.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
            cwd=_DIRECTORY,
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{command[0]} took more than {_TIMEOUT_SECONDS} s") from error
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        raise BuildError(f"{command[0]} failed: {' '.join(errors[:3]) or done.stderr[-300:]}")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of the command line: `output`, a directory or None, and `machine`."""
    parser = argparse.ArgumentParser(
        prog="python -m syncbn.native.build",
        description="Builds the C++ kernels and prints their path. CXX names the compiler.",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="directory instead of the cache")
    parser.add_argument(
        "--machine",
        default=platform.machine(),
        help="target machine, if CXX is a cross compiler (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    if options.output is None and options.machine != platform.machine():
        parser.error(f"a library for {options.machine} needs an --output directory")
    return options


def build_into(options: argparse.Namespace) -> Path:
    """Builds into `options.output`."""
    if options.output is None:
        raise BuildError("--output DIR is required if the package is not installed")
    target = Path(options.output).absolute() / file_name(options.machine)
    build(target, options.machine)
    return target


if __name__ == "__main__":
    try:
        print(build_into(parse(sys.argv[1:])))
    except (BuildError, OSError) as failure:
        sys.exit(str(failure))
