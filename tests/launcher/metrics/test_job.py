"""The job's page: sums over ranks, counters that never go backwards, the launcher's own events."""

from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest

from launcher.metrics import RANK_METRICS, Page
from launcher.metrics import definitions as m
from launcher.metrics.job import JobPage
from launcher.metrics.snapshots import write_snapshot
from launcher.runs.events import Event
from launcher.runs.layout import snapshot_path
from launcher.supervision.causes import CauseClass

PARTS = 'training_step_part_seconds_total{part="compute"}'


def _rank(run: Path, attempt: int, rank: int, steps: int, loss: float) -> None:
    page = Page(RANK_METRICS)
    page[m.STEPS].inc(steps)
    page[m.EXAMPLES].inc(32 * steps)
    page[m.STEP_DURATION].observe([0.01 * (rank + 1)] * steps)
    page[m.STEP_PART].labels("compute").inc(0.005 * steps)
    page[m.LOSS].set(loss)
    page[m.RESIDENT_MEMORY].set(1e9)
    page[m.LAST_STEP].set(1000.0 * (attempt + 1) + rank)
    page[m.TRAINING_INFO].labels("a", "rank", str(rank), "h", "m", "d", "sync", "mpi").set(1)
    path = snapshot_path(run, attempt, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_snapshot(path, page)


def _values(page: JobPage) -> dict[str, float]:
    lines = [line for line in page.text().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_ranks_are_aggregated_as_each_metric_defines(tmp_path: Path) -> None:
    _rank(tmp_path, 0, 0, steps=10, loss=0.5)
    _rank(tmp_path, 0, 1, steps=9, loss=0.6)
    values = _values(JobPage(2, tmp_path))
    assert values["training_steps_total"] == 10, "steps are the job's: the largest"
    assert values["training_examples_total"] == 19 * 32, "examples add up"
    assert values["training_step_duration_seconds_count"] == 19
    assert values["training_step_duration_seconds_sum"] == pytest.approx(0.1 + 0.18)
    assert values['training_step_duration_seconds_bucket{le="0.015"}'] == 10
    assert values[PARTS] == pytest.approx(19 * 0.005)
    assert values["training_loss"] == 0.5, "rank 0 speaks for all"
    assert values["training_resident_memory_bytes"] == 2e9
    assert values["training_last_step_timestamp_seconds"] == 1001
    infos = [name for name in values if name.startswith("training_info")]
    assert len(infos) == 1, "one series, so that queries can join with it"
    assert 'rank="0"' in infos[0]
    assert 'page="job"' in infos[0]


def test_counters_continue_across_restarts(tmp_path: Path) -> None:
    page = JobPage(2, tmp_path)
    counters = {
        metric.name + suffix
        for metric in RANK_METRICS
        if metric.accumulates
        for suffix in metric.suffixes
    }

    def look() -> dict[str, float]:
        return {
            name: value
            for name, value in _values(page).items()
            if name.partition("{")[0] in counters
        }

    seen = [look()]
    for attempt, steps in [(0, 5), (0, 40), (1, 0), (1, 3), (1, 20), (2, 1)]:
        for rank in range(2):
            _rank(tmp_path, attempt, rank, steps, loss=1.0)
        seen.append(look())
    # A partial or missing snapshot does not reduce the counts.
    snapshot_path(tmp_path, 2, 1).write_text('[["training_')
    snapshot_path(tmp_path, 1, 0).unlink()
    seen.append(look())
    for before, after in pairwise(seen):
        assert set(before) <= set(after)
        for name, value in before.items():
            assert after[name] >= value, name
    assert seen[-1]["training_steps_total"] == 40 + 20 + 1
    assert seen[0]["training_steps_total"] == 0, "zero before anybody has trained"


def test_gauges_are_those_of_the_newest_attempt_with_snapshots(tmp_path: Path) -> None:
    _rank(tmp_path, 0, 0, steps=5, loss=0.9)
    _rank(tmp_path, 1, 0, steps=1, loss=0.7)
    snapshot_path(tmp_path, 2, 0).parent.mkdir()
    assert _values(JobPage(1, tmp_path))["training_loss"] == 0.7


def test_rank_labels_give_one_series_per_rank(tmp_path: Path) -> None:
    for rank in range(2):
        _rank(tmp_path, 0, rank, steps=10 + rank, loss=0.5)
        _rank(tmp_path, 1, rank, steps=1, loss=0.4)
    values = _values(JobPage(2, tmp_path, rank_labels=True))
    assert values['training_steps_total{rank="0"}'] == 11
    assert values['training_steps_total{rank="1"}'] == 12
    assert "training_steps_total" not in values
    assert values['training_step_part_seconds_total{part="compute",rank="1"}'] > 0


def _tell(page: JobPage, kind: Any, rank: int | None = None, at: float = 0, **details: Any) -> None:
    page(Event(kind, 0, rank, details, at))


def test_events_become_states_exits_and_restarts(tmp_path: Path) -> None:
    page = JobPage(2, tmp_path)
    _tell(page, "run", at=100)
    _tell(page, "started", at=101, hosts=["a", "a"])
    assert _values(page)['launcher_workers{state="starting"}'] == 2
    for rank in range(2):
        _tell(page, "rank_up", rank)
    assert _values(page)['launcher_workers{state="running"}'] == 2
    _tell(page, "beat", 0, at=104, phase="training")
    assert _values(page)["launcher_rendezvous_duration_seconds"] == 0
    _tell(page, "beat", 1, at=105, phase="training")
    _tell(page, "beat", 1, at=109, phase="saving")
    values = _values(page)
    assert values["launcher_rendezvous_duration_seconds"] == 4
    assert values["launcher_start_timestamp_seconds"] == 100
    assert values['launcher_workers{state="training"}'] == 1
    assert values['launcher_workers{state="saving"}'] == 1

    _tell(page, "rank_ended", 1, exit_code=137, asked=False)
    _tell(page, "rank_ended", 0, exit_code=143, asked=True)
    page(Event("failed", 0, 1, {"class": "lost host"}))
    _tell(page, "restarting")
    _tell(page, "started", hosts=["a", "a"])
    values = _values(page)
    assert values['launcher_worker_exits_total{reason="signal"}'] == 1
    assert values['launcher_worker_exits_total{reason="stopped"}'] == 1
    assert values['launcher_restarts_total{reason="lost_host"}'] == 1
    assert values['launcher_workers{state="failed"}'] == 0
    for rank in range(2):
        _tell(page, "rank_ended", rank, exit_code=0, asked=False)
    values = _values(page)
    assert values['launcher_worker_exits_total{reason="success"}'] == 2
    assert values['launcher_workers{state="done"}'] == 2


def test_every_cause_of_a_failure_is_a_reason_for_a_restart() -> None:
    assert {kind.replace(" ", "_") for kind in get_args(CauseClass)} == set(m.RESTART_REASONS)


def test_unknown_events_are_ignored(tmp_path: Path) -> None:
    page = JobPage(1, tmp_path)
    _tell(page, "started")
    _tell(page, "failed", 0)
    _tell(page, "output", 0, text="x")
    assert _values(page)["launcher_ranks"] == 1
