"""The list of verbs, and that they do not depend on targets."""

import subprocess
import sys
from pathlib import Path

import pytest

import launcher.cli
from launcher.cli.app import VERBS, load
from launcher.spec.targets import TARGETS

CLI = Path(launcher.cli.__file__).parent


@pytest.mark.parametrize("file", sorted(CLI.glob("*.py")), ids=lambda path: path.stem)
def test_no_verb_names_a_target_or_checks_its_type(file: Path) -> None:
    text = file.read_text()
    # `--hosts` and "local" are words of a job too.
    assert [name for name in {*TARGETS} - {"local", "hosts"} if name in text] == []
    assert "isinstance(target" not in text


def test_every_verb_can_be_loaded_and_has_help() -> None:
    for verb in VERBS:
        assert load(verb).help


def test_help_has_panels_hides_container_verbs_and_imports_no_verb() -> None:
    program = (
        "import sys\n"
        "sys.argv = ['launcher', '--help']\n"
        "from launcher.cli.app import main\n"
        "try:\n    main()\n"
        "finally:\n    print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0
    panels = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("╭─")]
    assert panels == ["Options", "Run", "Inspect", "Set"]
    assert "join" not in done.stdout
    assert "health" not in done.stdout
    loaded = set(done.stderr.split())
    assert not {"tensorflow", "psutil", "launcher.cli.run", "launcher.targets"} & loaded


def test_launcher_train_is_the_trainer() -> None:
    for words, code in ((["--help"], 0), (["--epochs", "many"], 2)):
        ours, trainers = (
            subprocess.run(
                [sys.executable, "-m", *module, *words],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            for module in (["launcher", "train"], ["launcher.train"])
        )
        assert (ours.returncode, trainers.returncode) == (code, code)
        assert (ours.stdout, ours.stderr) == (trainers.stdout, trainers.stderr)
