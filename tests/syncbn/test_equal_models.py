"""Two ranks train one model, whatever the style of the program, or end with an error that helps.

Programs of every style run on both ranks of one job for each engine (equal_models/variants.py), and
mistakes after them or in jobs of their own (equal_models/mistakes.py).
"""

import os
from collections.abc import Callable

import pytest

from tests.jobs import JobResult
from tests.processes import Launcher
from tests.syncbn.equal_models.mistakes import CAUGHT, ENDING
from tests.syncbn.equal_models.variants import VARIANTS

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(600)]

_PROGRAM = "tests.syncbn.equal_models.program"
# What differs between the engines: sums, broadcasts, the tf.cond of a step, exchanged fingerprints.
_ON_EVERY_ENGINE = (
    "unbuilt",
    "subclassed_eagerly",
    "step_that_needs_numbers",
    "unbuilt_steps_per_execution",
    "optimizer_passes",
    "mixed_float16",
    "built_on_one_rank_only",
    "saved_and_loaded",
    "resumed_on_the_first_rank",
    "loop_by_tape",
    "loop_averaged_by_hand",
    "trained_alone_for_a_while",
)
ENGINES = {
    "mpi": ("mpirun", "mpi", ()),
    "horovod-mpi": ("horovodrun", "horovod", ("--mpi",)),
    "horovod-gloo": ("horovodrun", "horovod", ("--gloo",)),
    "tf": ("tf_cluster", "tf", ()),
}

Run = Callable[..., JobResult]


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Run:
    def on(engine: str, module: str, *arguments: str) -> JobResult:
        fixture, backend, options = ENGINES[engine]
        launcher: Launcher = request.getfixturevalue(fixture)
        return launcher(2, module, [backend, *arguments], options=options, timeout=580)

    return on


@pytest.mark.parametrize("engine", ENGINES)
def test_every_style_of_program_ends_with_one_model(engine: str, run: Run) -> None:
    everything = engine == "mpi" or os.environ.get("EVERY_VARIANT") == "1"
    names = tuple(VARIANTS) if everything else _ON_EVERY_ENGINE
    first, second = run(engine, _PROGRAM, *names).json()
    for name in names:
        assert "digest" in first[name], f"{name}: {first[name]}"
        assert first[name] == second[name], f"{name}: the ranks have trained different models"
    for mistake in CAUGHT:
        told = [answers[mistake.__name__].get("error", "") for answers in (first, second)]
        assert any("syncbn.DistributedOptimizer(optimizer)" in text for text in told), (
            f"{mistake.__name__}: neither rank noticed: {told}"
        )


def test_without_the_kernels_the_ranks_train_one_model_too(mpirun: Launcher) -> None:
    names = ("unbuilt", "optimizer_compressed", "loop_averaged_by_hand")
    slow = {"SYNCBN_NATIVE": "0"}
    first, second = mpirun(2, _PROGRAM, ["mpi", *names], environment=slow, timeout=580).json()
    for name in names:
        assert "digest" in first[name], f"{name}: {first[name]}"
        assert first[name] == second[name], name


@pytest.mark.parametrize(
    ("engine", "mistake"),
    [
        ("mpi", "plain_optimizer_with_the_layer"),
        ("horovod-mpi", "learning_rate_of_one_rank"),
        ("horovod-gloo", "plain_optimizer_with_the_layer"),
        ("tf", "plain_optimizer_with_the_layer"),
        ("mpi", "unequal_starts"),
        ("horovod-gloo", "unequal_starts"),
        ("tf", "unequal_starts"),
        ("mpi", "compiled_by_xla"),
        ("horovod-gloo", "compiled_by_xla"),
        ("tf", "compiled_by_xla"),
        ("mpi", "weights_assigned_by_hand"),
    ],
)
def test_ranks_that_train_different_models_end_the_job(engine: str, mistake: str, run: Run) -> None:
    result = run(engine, "tests.syncbn.equal_models.mistakes", mistake)
    told = result.transcript()
    assert result.returncode != 0, told
    assert "DivergenceError: the ranks do not train one model: after step" in told, told
    assert "differs between the ranks 0 and 1" in told
    assert ENDING[mistake][1] in told
    assert "syncbn.train_independently(optimizer)" in told
