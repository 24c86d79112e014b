"""Makes what a release consists of, in dist/: the source distribution and a wheel with the kernels.

`make wheel` runs it. The wheel is built from the unpacked source distribution, so that this one is
complete, and its kernels by zig, a compiler that comes as a wheel and targets an old glibc. One
wheel serves every Python and TensorFlow; `--machine` names the kind of processor.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GLIBC = (2, 28)
MACHINES = ("x86_64", "aarch64")


def make(machine: str, place: Path) -> list[Path]:
    """The source distribution and the wheel, made in `place` and checked."""
    tag = f"manylinux_{GLIBC[0]}_{GLIBC[1]}_{machine}"
    with tempfile.TemporaryDirectory() as directory:
        fresh = Path(directory, "dist")
        _python("build", "--sdist", "--no-isolation", "--outdir", str(fresh), str(ROOT))
        [sdist] = fresh.glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            archive.extractall(directory, filter="data")
        source = Path(directory, sdist.name.removesuffix(".tar.gz"))
        _build_kernels(source / "syncbn" / "native", machine)
        options = [
            "--wheel",
            "--no-isolation",
            f"--config-setting=--build-option=--plat-name={tag}",
        ]
        _python("build", *options, "--outdir", str(fresh), str(source))
        [wheel] = fresh.glob("*.whl")
        _python("twine", "check", "--strict", str(sdist), str(wheel))
        _check_tag(wheel, machine)
        place.mkdir(exist_ok=True)
        return [Path(shutil.move(file, place / file.name)) for file in (sdist, wheel)]


def _build_kernels(native: Path, machine: str) -> None:
    target = f"{machine}-linux-gnu.{GLIBC[0]}.{GLIBC[1]}"
    compiler = f"{sys.executable} -m ziglang c++ -target {target}"
    subprocess.run(
        [sys.executable, "compiler.py", "--output", "lib", "--machine", machine],
        cwd=native,
        env=os.environ | {"CXX": compiler},
        check=True,
    )


def _check_tag(wheel: Path, machine: str) -> None:
    """Raises SystemExit if the kernels need more of a system than the wheel's name says."""
    shown = subprocess.run(
        [sys.executable, "-m", "auditwheel", "show", str(wheel)],
        capture_output=True,
        text=True,
        check=False,
    )
    tag = re.search(rf'tag: "manylinux_(\d+)_(\d+)_{machine}"', " ".join(shown.stdout.split()))
    if tag is None or (int(tag[1]), int(tag[2])) > GLIBC:
        raise SystemExit(
            f"{wheel.name} is for newer systems than it says:\n{shown.stdout}{shown.stderr}"
        )


def _python(module: str, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", module, *arguments], check=True, stdout=subprocess.DEVNULL
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--machine", choices=MACHINES, default="x86_64")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="default: dist")
    chosen = parser.parse_args()
    for made in make(chosen.machine, chosen.output):
        print(made)
