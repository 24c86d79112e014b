"""metrics.jsonl: valid JSON, thinned out, and cut back when a run resumes."""

import json
import math
from pathlib import Path

from launcher.train.observers.journal import Journal, thinning
from tests.launcher.train.observers.events import epoch_done, run_started, step_done


def test_the_journal_is_json_thinned_out_and_truncated_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    about = {"config": {"seed": 0}}
    journal = Journal(path, about, lambda: 2.0, lambda: {"bn": (0.1, 0.2)})
    journal.on_start(run_started())
    for step in range(1, 21):
        journal.on_step(step_done(step, loss=math.inf if step == 20 else 0.123456789))
    journal.on_epoch(epoch_done(20))
    with path.open("a") as file:
        file.write('{"event": "step", "step": 21, "lo')

    resumed = Journal(path, about, lambda: 2.0, dict)
    resumed.on_start(run_started(step=10))
    resumed.on_step(step_done(11))
    resumed.on_end({"steps": 11, "stopped": True})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", *["step"] * 10, "start", "step", "end"]
    assert [line["step"] for line in lines] == [0, *range(1, 11), 10, 11, 11]
    assert lines[1]["loss"] == 0.1234568
    assert lines[1]["gradient_norm"] == 2.0
    assert lines[0]["config"] == {"seed": 0}


def test_steps_are_thinned_out_the_further_a_run_gets() -> None:
    assert [thinning(step) for step in (1, 1999, 2000, 4000, 1_000_000)] == [1, 1, 2, 4, 512]
    kept = sum(step % thinning(step) == 0 for step in range(1, 1_000_001))
    assert kept < 12_000


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, {}, lambda: math.nan, dict)
    journal.on_start(run_started())
    journal.on_step(step_done(1, loss=math.nan))
    journal.on_end({"steps": 1, "stopped": False})

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert lines[1]["loss"] is None
