"""The script that `--target slurm` renders; tests/slurm runs such scripts.

A golden file is written anew when it is removed: read the difference before you commit it.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import SpecError
from launcher.spec import JobSpec, build_spec
from launcher.targets import Location, load_target
from launcher.targets.slurm import script

GOLDEN = Path(__file__).parent / "golden"

PLAIN: dict[str, Any] = {
    "name": "plain",
    "command": ["python", "train.py"],
    "ranks": 2,
    "backend": "mpi",
    "target": "slurm",
    "directory": "/home/ada/project",
    "output": "/scratch/ada/runs",
}
FULL: dict[str, Any] = {
    **PLAIN,
    "name": "full",
    "command": ["python", "-m", "launcher.train", "--note", "two words"],
    "ranks": 8,
    "environment": {"DATA": "/data/it's here", "API_TOKEN": "hush"},
    "resources": {"cpus": 4, "memory": "8GiB", "gpus": 1},
    "restart": {"max_restarts": 5},
    "save_timeout": 120,
    "metrics": {"port": 9400},
    "container": {"slots": 4},
    "slurm": {
        "partition": "gpu",
        "account": "vision",
        "qos": "high",
        "time": "1-12:00:00",
        "constraint": "a100&ib",
        "exclusive": True,
        "gpu_type": "h100",
        "dependency": "afterok:4711",
        "setup": ["module load cuda/12", "ulimit -n 65536"],
        "options": ["--reservation=maint", "--mail-type=END"],
        "container_image": "/images/syncbn.sif",
        "mounts": ["/data"],
    },
}
PYXIS: dict[str, Any] = {
    **PLAIN,
    "name": "pyxis",
    "slurm": {
        "requeue": False,
        "container_image": "registry.example#team/syncbn:gpu",
        "container_runtime": "pyxis",
        "mounts": ["/data", "/home/ada:/root:ro"],
    },
}
ALL = [PLAIN, FULL, PYXIS]


def rendered(fields: dict[str, Any], **changes: Any) -> str:
    spec = build_spec({**fields, **changes})
    return load_target("slurm", Location.of(spec)).render(spec)


def job(**slurm: Any) -> JobSpec:
    return build_spec({**PLAIN, "slurm": slurm})


@pytest.mark.parametrize("fields", ALL, ids=lambda fields: fields["name"])
def test_the_scripts_equal_the_golden_files(fields: dict[str, Any]) -> None:
    text = rendered(fields).replace(sys.executable, "/home/ada/venv/bin/python") + "\n"
    golden = GOLDEN / f"slurm-{fields['name']}.sh"
    if not golden.exists():
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("fields", ALL, ids=lambda fields: fields["name"])
def test_the_scripts_are_clean_for_shellcheck(fields: dict[str, Any]) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck: apt-get install shellcheck")
    done = subprocess.run(
        ["shellcheck", "--shell=bash", "-"],
        input=rendered(fields),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout


def test_values_of_secrets_are_not_in_the_script() -> None:
    assert "hush" not in rendered(FULL)


def test_quotes_and_dollars_of_a_command_reach_the_program(tmp_path: Path) -> None:
    words = ["python", "a b", "$HOME", "it's", '"x"', "`id`", "\\"]
    text = rendered({**PLAIN, "command": words})
    step = re.search(r"(?ms)^srun .*?(?= &$)", text)
    assert step is not None
    shown = 'srun() { printf "%s\\n" "$@"; }; port=1; SLURM_JOB_ID=1\n' + step[0]
    told = subprocess.run(["bash", "-c", shown], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-len(words) :] == words


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"ranks": 3, "container": {"slots": 2}}, "ranks: expected a multiple of the 2 slots"),
        ({"hosts": [{"name": "n1", "slots": 2}]}, "hosts: Slurm chooses the nodes"),
        ({"backend": "local"}, "backend: expected auto, mpi, horovod or tf"),
        ({"container": {"image": "syncbn:cpu"}}, "on Slurm the image is slurm.container_image"),
        ({"kubernetes": {"time_limit": 60}}, "on Slurm the limit is slurm.time"),
        ({"slurm": {"mounts": ["/data"]}}, "slurm.mounts: expected a container_image"),
        ({"output": "/scratch/my runs"}, "output, directory: sbatch takes no space"),
    ],
)
def test_what_slurm_cannot_provide_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(SpecError, match=re.escape(problem)):
        script.check(build_spec({**PLAIN, **changes}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("partition", "a b"),
        ("account", "x#y"),
        ("time", "soon"),
        ("options", ["reservation=maint"]),
        ("options", ["--comment=a\nb"]),
        ("setup", ["a\nb"]),
        ("container_runtime", "docker"),
    ],
)
def test_invalid_fields_are_refused(field: str, value: Any) -> None:
    with pytest.raises(SpecError, match=rf"slurm(\.{field}(\.0)?)?: "):
        job(**{field: value})
