"""The workflows of .github: valid, and CI is what `.ci/run` does."""

import shutil
import subprocess

import pytest

from tests.processes import REPOSITORY

WORKFLOWS = REPOSITORY / ".github" / "workflows"
ACTIONLINT = "github.com/rhysd/actionlint/cmd/actionlint@v1.7.12"


@pytest.mark.timeout(400)
def test_actionlint_has_nothing_to_say() -> None:
    go = shutil.which("go")
    if go is None:
        pytest.skip("no go, which runs actionlint: apt-get install golang")
    done = subprocess.run(
        [go, "run", ACTIONLINT, *sorted(WORKFLOWS.glob("*.yml"))],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ci_is_the_script_that_everybody_can_run() -> None:
    assert "bash .ci/run" in (WORKFLOWS / "ci.yml").read_text()
