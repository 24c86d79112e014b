"""Help, usage errors and rendering: the verbs without a job."""

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from launcher.spec import JobSpec, Metrics
from launcher.train.config import TrainConfig
from tests.launcher.cli.commands import launcher
from tests.processes import REPOSITORY


def test_help_imports_no_heavy_modules() -> None:
    source = (
        "import sys; sys.argv = ['launcher', '--help']\n"
        "from launcher.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'tensorflow', 'keras', 'kubernetes', 'horovod', 'pydantic', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    for verb in ("run", "submit", "render", "status", "logs", "list", "cancel", "doctor"):
        assert f" {verb} " in done.stdout


@pytest.mark.parametrize("module", ["launcher", "launcher.train"])
def test_the_version_is_printed_without_importing_tensorflow(module: str) -> None:
    source = (
        f"import sys, runpy; sys.argv = ['{module}', '--version']\n"
        f"try:\n    runpy.run_module('{module}', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n    print(end.code or 0, 'tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    own = metadata.version("syncbn")
    assert re.fullmatch(rf"syncbn {own} \(python .*, keras [\d.]+\)\n0 False\n", done.stdout)


def test_the_help_of_the_trainer_shows_every_default() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launcher.train", "--help"],
        cwd=REPOSITORY,
        env={**os.environ, "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=True,
    )
    shown = dict(re.findall(r"--([a-z-]+) .*\[default: (.*?)\]", done.stdout))
    for name, field in TrainConfig.model_fields.items():
        flag = name.replace("_", "-")
        if field.annotation is bool:
            assert shown[flag] == (flag if field.default else f"no-{flag}")
        elif field.default is not None:
            value = field.default
            assert shown[flag] == (f"{value:g}" if isinstance(value, float) else str(value))


def test_the_help_of_a_job_shows_the_defaults_of_its_fields() -> None:
    done = launcher("run", "--help", COLUMNS="200")
    shown = dict(re.findall(r"--([a-z-]+) .*\[default: (.*?)\]", done.stdout))
    spec = JobSpec(command=("a",))
    fields = {**dict(spec), **dict(spec.restart), **dict(spec.resources)}
    fields |= {
        "slots": spec.container.slots,
        "metrics_host": Metrics().address,
        "kind": spec.kubernetes.kind,
    }
    for flag in (
        "max-restarts",
        "backoff",
        "hang-timeout",
        "exit-timeout",
        "grace",
        "kind",
        "save-timeout",
        "silence-timeout",
        "output",
        "binding",
        "metrics-host",
        "slots",
    ):
        value = fields[flag.replace("-", "_")]
        assert shown[flag] == (f"{value:g}" if isinstance(value, float) else str(value))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run"], "no command"),
        (["run", "-np", "0", "--", "true"], "ranks: expected at least 1, as in ranks = 2"),
        (["run", "-np", "1000", "--", "true"], "start them anyway: --oversubscribe"),
        (["run", "--hosts", "a", "--ssh", "'", "--", "true"], "--ssh: expected a command such as"),
        (["run", "-np", "two", "--", "true"], "ranks: expected a whole number"),
        (["run", "--backend", "smoke", "--", "true"], "backend: "),
        (["run", "--quiet", "--json", "--", "true"], "expected --quiet or --json"),
        (["run", "--hosts", "a", "--hostfile", "b", "--", "true"], "--hosts or --hostfile"),
        (["run", "--config", "none.toml", "--", "true"], "none.toml: No such file"),
        (["run", "--env", "NO_SUCH_VARIABLE", "--", "true"], "--env NO_SUCH_VARIABLE"),
        (["run", "--restart-codes", "x", "--", "true"], "--restart-codes"),
        (["run", "--memory", "much", "--", "true"], "resources.memory"),
        (["status", "none", "-o", "/nowhere"], "no run starts with 'none'"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_wrong_usage_is_a_one_line_error_with_code_2(arguments: list[str], said: str) -> None:
    done = launcher(*arguments)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_render_runs_nothing(tmp_path: Path) -> None:
    job = ["--hosts", "h1:2,h2:1", "--backend", "horovod", "--env", "API_TOKEN=hush"]
    done = launcher("render", *job, "--", "touch", str(tmp_path / "made"))
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "made").exists()
    assert done.stdout.count(f"touch {tmp_path}/made") == 3
    assert "# rank 2 on h2" in done.stdout
    for line in ("HOROVOD_CROSS_RANK=1", "HOROVOD_LOCAL_SIZE=2", "HOROVOD_SIZE=3"):
        assert line in done.stdout
    assert "hush" not in done.stdout
    assert "API_TOKEN='(not shown)'" in done.stdout


def test_render_for_mpi_is_a_shell_command() -> None:
    done = launcher(
        "render", "-np", "4", "--hosts", "h1:4,h2:4", "--backend", "mpi", "--", "a", "b c"
    )
    assert re.search(r"mpirun -np 4 .*--host h1:4 .* a 'b c'$", done.stdout.strip())


def test_flags_override_a_toml_file(tmp_path: Path) -> None:
    config = tmp_path / "job.toml"
    config.write_text(
        'command = ["python", "x.py"]\nranks = 3\nbackend = "local"\n[restart]\nmax_restarts = 9\n'
    )
    done = launcher("render", "--config", str(config), "--backoff", "7", "-np", "2", "--json")
    spec = json.loads(done.stdout)
    assert (spec["ranks"], spec["restart"]["max_restarts"], spec["restart"]["backoff"]) == (2, 9, 7)
    config.write_text('command = ["x"]\nranks = 2\ncolour = "red"\n')
    done = launcher("render", "--config", str(config))
    assert (done.returncode, "colour: no such field of a job" in done.stderr) == (2, True)
