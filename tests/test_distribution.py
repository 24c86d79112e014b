"""What `python -m build` makes: complete, accepted by `twine check`, and working once installed."""

import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.processes import REPOSITORY, Launcher

PACKAGES = ("syncbn", "launcher")
LEFT_BEHIND = shutil.ignore_patterns(
    ".*_cache", ".git", ".hypothesis", ".venv", "*.egg-info", "__pycache__",
    "build", "dist", "runs", "site-packages",
)  # fmt: skip


@pytest.mark.timeout(120)
def test_both_distributions_are_complete_and_the_wheel_works(
    single_process: Launcher, tmp_path: Path
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(REPOSITORY, source, ignore=LEFT_BEHIND, symlinks=True)
    (source / ".venv").unlink(missing_ok=True)
    build = ["--no-isolation", "--outdir", str(out), str(source)]
    single_process(1, "build", build).check()
    [wheel], [sdist] = out.glob("*.whl"), out.glob("*.tar.gz")
    single_process(1, "twine", ["check", "--strict", str(wheel), str(sdist)]).check()

    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames() if "/" in name}
    assert _files(source, ".") - {"MANIFEST.in"} <= packed

    names = set(zipfile.ZipFile(wheel).namelist())
    information = {name for name in names if ".dist-info/" in name}
    assert names - information == _files(source, *PACKAGES)
    assert any(name.endswith("/licenses/LICENSE") for name in information)

    site = tmp_path / "site"
    install = ["install", "--no-deps", "--no-index", "--quiet", "--target", str(site), str(wheel)]
    single_process(1, "pip", install).check()
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, launcher, syncbn, importlib.metadata as m\n"
        "from launcher.cli.app import VERBS, load\n"
        "[load(verb) for verb in VERBS]\n"
        "print(syncbn.__file__, launcher.__file__, m.version('syncbn'))\n"
    )
    environment = {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    said = single_process(1, program, environment=environment).check().stdout[0]
    assert said.count(str(site)) == len(PACKAGES)
    assert (site / "bin" / "launcher").read_text().startswith(f"#!{sys.executable}")


def _files(root: Path, *folders: str) -> set[str]:
    found = (path for folder in folders for path in (root / folder).rglob("*") if path.is_file())
    return {
        path.relative_to(root).as_posix()
        for path in found
        if "__pycache__" not in path.parts
        and not path.relative_to(root).parts[0].endswith(".egg-info")
    }
