"""The study of small batches: its plan and verdicts, one process against real ranks, the page."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks.small_batch import training
from benchmarks.small_batch.estimates import Estimate, Table, accuracy
from benchmarks.small_batch.page import tables
from benchmarks.small_batch.plan import (
    NORMS,
    SHARDINGS,
    Group,
    Plan,
    Result,
    Run,
    learning_rates,
    sample_numbers,
)
from benchmarks.small_batch.store import Study, load, save
from launcher.errors import UsageError
from tests.benchmarks import small_batch_program as on_ranks
from tests.processes import REPOSITORY, Launcher

_LABELS = np.random.default_rng(0).integers(0, 10, 449)


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("world", Plan.worlds)
@pytest.mark.parametrize("batch", Plan.batches)
def test_every_training_sees_as_many_samples(sharding: str, world: int, batch: int) -> None:
    run = Run(world, batch, "sync", sharding, seed=0)  # type: ignore[arg-type]
    numbers = sample_numbers(run, _LABELS, Plan.samples)
    assert numbers.shape == (Plan.samples // (world * batch), world, batch)
    assert len(learning_rates(Plan(), run)) == len(numbers)
    times_seen = np.bincount(numbers.ravel(), minlength=len(_LABELS))
    assert times_seen.min() > 0
    # Shards of 56 and of 57 samples are used almost equally often.
    assert times_seen.max() - times_seen.min() <= 2


def test_shuffled_steps_do_not_depend_on_their_division_into_ranks() -> None:
    few, many = (
        sample_numbers(Run(world, 32 // world, "sync", "shuffled", 3), _LABELS, Plan.samples)
        for world in (2, 8)
    )
    np.testing.assert_array_equal(few.reshape(len(few), -1), many.reshape(len(many), -1))


def test_shards_by_class_follow_each_other() -> None:
    numbers = sample_numbers(Run(4, 8, "sync", "by-class", 0), _LABELS, Plan.samples)
    labels = [_LABELS[numbers[:, rank]] for rank in range(4)]
    assert all(low.max() <= high.min() for low, high in pairwise(labels))


def _result(norm: str, seed: int, accuracy: float) -> Result:
    return Result(2, 2, norm, "shuffled", seed, 1.0, accuracy, accuracy)  # type: ignore[arg-type]


def test_a_gain_is_taken_in_pairs_of_equal_seeds() -> None:
    levels = (0.5, 0.7, 0.9)  # seeds differ by far more than norms
    local = [_result("local", seed, level) for seed, level in enumerate(levels)]
    sync = [_result("sync", seed, level + 0.01) for seed, level in enumerate(levels)]
    gain = Table([*reversed(sync), *local]).gain("shuffled", 2, 2)
    assert gain.mean == pytest.approx(1.0)
    assert gain.half == pytest.approx(0.0, abs=1e-9)
    assert gain.verdict == "helps"


def test_half_width_is_that_of_students_t() -> None:
    values = [_result("sync", seed, value / 100) for seed, value in enumerate((1.0, 2.0, 3.0))]
    estimate = Table(values).estimate(lambda r: 100 * r.test_accuracy, "shuffled", 2, 2, "sync")
    assert estimate.mean == pytest.approx(2.0)
    assert estimate.half == pytest.approx(4.303 / np.sqrt(3), rel=1e-3)  # t(0.975, 2) = 4.303


@pytest.mark.parametrize(
    ("mean", "verdict"), [(0.6, "helps"), (0.5, "no difference"), (-0.6, "hurts")]
)
def test_verdicts(mean: float, verdict: str) -> None:
    assert Estimate(mean, 0.5).verdict == verdict


def test_a_study_continues_from_its_file(tmp_path: Path) -> None:
    plan = Plan(worlds=(2,), batches=(2,), seeds=2)
    study = Study(plan, [_result("sync", seed, 0.9) for seed in range(2)])
    save(study, tmp_path / "study.json")
    found = load(tmp_path / "study.json", plan)
    assert found == study
    assert found.missing() == [Group(2, 2, "local"), Group(2, 2, "none")]
    with pytest.raises(UsageError, match="another plan; remove it or choose another --output"):
        load(tmp_path / "study.json", replace(plan, seeds=3))
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(UsageError, match="is not a valid study"):
        load(tmp_path / "study.json", plan)


@pytest.mark.multiprocess
@pytest.mark.timeout(200)
def test_one_process_trains_what_real_ranks_train(mpirun: Launcher, tmp_path: Path) -> None:
    mpirun(2, "tests.benchmarks.small_batch_program", [str(tmp_path)], timeout=180).check()
    plan = on_ranks.PLAN
    data = training.load_data(plan.held_out)
    train = training.arrays(data.train)
    for norm in on_ranks.NORMS:
        run = on_ranks.run_of(norm)
        model = training.fresh_model(data, run, run.seed)
        steps = training.compiled_steps(model, training.make_optimizer(model), train)
        before = model.get_weights()
        numbers = sample_numbers(run, train[1], plan.samples)
        steps(numbers.reshape(len(numbers), -1), learning_rates(plan, run))
        with np.load(tmp_path / f"{norm}.npz") as saved:
            expected = list(saved.values())
        for start, ours, theirs in zip(before, model.get_weights(), expected, strict=True):
            moved = np.linalg.norm(theirs - start)
            assert moved > 0
            assert np.linalg.norm(ours - theirs) < 1e-3 * moved


@pytest.mark.multiprocess
@pytest.mark.timeout(200)
def test_the_command(single_process: Launcher, tmp_path: Path) -> None:
    arguments = ["--toy", "--output", str(tmp_path)]
    for attempt in range(2):
        done = single_process(1, "benchmarks.small_batch", arguments, timeout=180).check()
        # The second run has nothing left to train.
        assert ("of 3:" in done.stdout[0]) == (attempt == 0)
    page = (tmp_path / "study.md").read_text()
    assert "| shuffled | 2 | " in page
    for name in ("accuracy", "gap", "numerics"):
        assert (tmp_path / "figures" / f"study-{name}.svg").read_text().startswith("<?xml")
    content = json.loads((tmp_path / "study.json").read_text())
    assert len(content["results"]) == len(NORMS) * len(SHARDINGS) * content["plan"]["seeds"]
    largest = {
        name: max(row["largest"] for row in content["numerics"] if row["implementation"] == name)
        for name in ("syncbn", "keras")
    }
    assert largest["syncbn"] < 2e-6
    assert largest["keras"] > 1.0


def test_a_wrong_number_of_seeds_is_bad_usage(single_process: Launcher) -> None:
    done = single_process(1, "benchmarks.small_batch", ["--seeds", "1"])
    assert done.returncode == 2
    assert "expected at least 2, for error bars. Received: 1" in done.stderr[0]


def test_the_page_says_what_was_measured() -> None:
    """Its tables match the recorded results, which support its first paragraphs."""
    plan = Plan()
    study = load(REPOSITORY / "docs" / "study.json", plan)
    assert not study.missing()
    assert tables(study) in (REPOSITORY / "docs" / "study.md").read_text()
    table = Table(study.results)
    for world in plan.worlds:
        tiny = table.gain("shuffled", world, batch=2)
        assert tiny.verdict == "helps"
        assert 1.5 < tiny.mean < 2.5
        local, none = (
            table.estimate(accuracy, "shuffled", world, 2, norm).mean for norm in ("local", "none")
        )
        assert local < none
        for batch in plan.batches:
            assert table.gain("by-class", world, batch).verdict == "helps"
            if batch > 2:
                larger = table.gain("shuffled", world, batch)
                assert larger.verdict != "helps"
                assert -0.7 < larger.mean < 0.2
