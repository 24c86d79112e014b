"""The benchmarks of speed and memory at toy size: their output is complete. Nothing is timed."""

import json
import math
from pathlib import Path
from typing import Any

import keras
import pytest

import syncbn
from benchmarks import (
    end_to_end,
    figures,
    latency,
    layer,
    memory,
    options,
    page,
    scaling,
    startup,
    training,
    training_steps,
)
from benchmarks.harness.conductor import BenchmarkError, Conductor, Plan
from benchmarks.harness.results import Bar, Report, Timing, with_unit

_PARTS = {
    "layer": layer,
    "options": options,
    "training": training,
    "end_to_end": end_to_end,
    "startup": startup,
    "latency": latency,
    "memory": memory,
    "scaling": scaling,
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The output of each benchmark at toy size, from real ranks."""
    directory = tmp_path_factory.mktemp("benchmarks")
    for name, module in _PARTS.items():
        module.main(["--toy", "--output", str(directory / f"{name}.json")])
    return {name: json.loads((directory / f"{name}.json").read_text()) for name in _PARTS}


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(600)
def test_every_benchmark_measures_its_contenders(found: dict[str, dict[str, Any]]) -> None:
    contenders = {
        name: {(t["contender"], t["backend"]) for t in part["timings"]}
        for name, part in found.items()
    }
    assert contenders["layer"] == {
        (e.words, e.plan) for e in layer.ENTRIES if e.plan in ("mpi", "tf")
    }
    assert {rival for rival, _ in contenders["training"]} == {
        training.OURS,
        training.KERAS_LOCAL,
        training.KERAS_SYNC,
    }
    assert (latency.RAW, "mpi") in contenders["latency"]
    assert (latency.OURS, "mpi") in contenders["latency"]
    assert contenders["scaling"] == {("2 ranks", "mpi")}
    assert {name for name, _ in contenders["end_to_end"]} == {
        end_to_end.STEPS,
        end_to_end.LOOP,
        end_to_end.WATCHED,
    }
    assert {name for name, _ in contenders["startup"]} == {
        startup.MPIRUN,
        startup.LAUNCHER,
        startup.KERAS,
        startup.TRACING_OURS,
        startup.TRACING_KERAS,
    }
    parts = found["startup"]["details"]["parts"]
    assert set(parts) == {startup.MPIRUN, startup.LAUNCHER}
    for timing in found["startup"]["timings"]:
        if timing["contender"] in parts:
            assert sum(parts[timing["contender"]].values()) == pytest.approx(timing["median"])
    for part in found.values():
        for timing in part["timings"]:
            assert 0 < timing["minimum"] <= timing["median"] <= timing["p90"]
            assert timing["samples"] >= (1 if timing["case"] == startup.STARTING else 2)

    # A layer holds its input and some float64 numbers per channel, here for 64 channels.
    kept = found["memory"]["details"]["memory"]["syncbn"]
    assert 0 < kept["held bytes"] <= 10 * 64 * 8
    assert kept["peak"] > 2

    assert found["layer"]["details"]["copy limit"]["passes over the tensor"] == 8
    assert [row["ranks"] for row in found["scaling"]["details"]["predicted"]] == [
        *scaling.PREDICTED
    ]


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(600)
def test_the_page_holds_every_bar_and_plot(
    found: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "DOCUMENTS", tmp_path)
    readme = tmp_path / "README.md"
    monkeypatch.setattr(page, "README", readme)
    readme.write_text(f"before\n\n{page.BEGIN}\n\nold figures\n\n{page.END}\n\nafter\n")
    figures_of_parts = tmp_path / "figures-of-parts"
    figures_of_parts.mkdir()
    for name, part in found.items():
        (figures_of_parts / f"{name}.json").write_text(json.dumps(part))
    page.write(figures_of_parts)
    text = (tmp_path / "performance.md").read_text()
    for part in found.values():
        for bar in part["bars"]:
            assert bar["claim"] in text
    for name in ("layer", "training", "latency", "scaling"):
        assert f"figures/performance-{name}.svg" in text
        assert "</svg>" in (tmp_path / "figures" / f"performance-{name}.svg").read_text()
    before, table, after = readme.read_text().partition("| a step of ResNet-20 |")
    assert table
    assert before.startswith(f"before\n\n{page.BEGIN}\n\n| ")
    assert after.endswith(f" |\n\n{page.END}\n\nafter\n")
    assert "old figures" not in before + after


@pytest.mark.parametrize("contender", training_steps.NORMS)
def test_an_application_has_the_normalization_of_its_contender(contender: str) -> None:
    model = training_steps.application(contender, "MobileNet", 32)
    layers = [la for la in model.layers if isinstance(la, keras.layers.BatchNormalization)]
    ours = contender == "ours"
    assert len(layers) == 27
    assert all(isinstance(layer, syncbn.SyncBatchNormalization) is ours for layer in layers)
    assert all(layer.synchronized is (contender != "keras") for layer in layers)


def test_the_same_figures_give_the_same_plots(tmp_path: Path) -> None:
    timing = {"contender": "a", "backend": "b", "median": 2e-3, "p90": 3e-3}
    part = {"timings": [timing | {"case": "an all-reduce of 3 values"}]}
    predicted = [{"ranks": n, "ResNet-50": {"tree": 1e-3 * n, "ring": 2e-3 * n}} for n in (2, 4)]
    found: dict[str, dict[str, Any]] = {"layer": part, "training": part, "latency": part}
    found["scaling"] = {"details": {"predicted": predicted}}
    drawings = []
    for directory in (tmp_path / "first", tmp_path / "second"):
        figures.draw(found, directory)
        drawings.append({path.name: path.read_bytes() for path in directory.iterdir()})
    assert drawings[0] == drawings[1]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(2.364e-6, "2.36 µs"), (0.0012, "1.2 ms"), (0.9994, "999 ms"), (61.5, "61.50 s")],
)
def test_times_have_a_suitable_unit(seconds: float, shown: str) -> None:
    assert with_unit(seconds) == shown


def test_a_bar_is_an_upper_or_a_lower_limit() -> None:
    assert Bar("smaller", 0.5, 0.6, at_most=True).holds
    assert not Bar("smaller", 0.7, 0.6, at_most=True).holds
    assert Bar("faster", 3.0, 2.2, at_most=False).holds
    assert not Bar("faster", 2.0, 2.2, at_most=False).holds


def test_a_timing_holds_the_middle_and_the_tail() -> None:
    timing = Timing.of("a", "b", "c", [float(i) for i in range(10, 0, -1)], 0.0)
    assert (timing.minimum, timing.median, timing.p90, timing.samples) == (1.0, 5.5, 10.0, 10)
    report = Report("name", {}, timings=[timing])
    assert report.median("a", "c") == 5.5
    with pytest.raises(KeyError, match="not measured"):
        report.median("a", "another case")


def test_the_fit_finds_the_line_it_was_given() -> None:
    sizes = [1000, 8000, 64000, 512000]
    alpha, beta = scaling.fit(sizes, [2e-6 + size * 3e-10 for size in sizes])
    assert math.isclose(alpha, 2e-6, rel_tol=1e-6)
    assert math.isclose(beta, 3e-10, rel_tol=1e-6)


def test_predictions_follow_the_algorithms() -> None:
    # Two ranks exchange once in a tree; in a ring they send half of the vector twice.
    assert scaling.tree(2, 1e6, 1.0, 1e-6) == pytest.approx(2.0)
    assert scaling.ring(2, 1e6, 1.0, 1e-6) == pytest.approx(3.0)
    assert scaling.tree(4096, 0, 1.0, 0) == 12
    assert scaling.ring(4096, 0, 1.0, 0) == 2 * 4095
    assert len(scaling.RESNET50) == 53
    assert sum(scaling.RESNET50) == 26560


def test_a_job_that_cannot_start_is_an_error_with_its_output() -> None:
    with (
        pytest.raises(BenchmarkError, match=r"No module named 'benchmarks\.nothing'"),
        Conductor("benchmarks.nothing") as conductor,
    ):
        conductor.start([Plan("alone", "alone", "local")], ranks=1)
