"""Two ranks train one model with every style of program, or end with a helpful error.

Programs of every style run on both ranks of one job per backend (equal_models/variants.py),
followed by mistakes, or mistakes in separate jobs (equal_models/mistakes.py).
"""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from tests.jobs import JobResult
from tests.processes import Launcher
from tests.syncbn.equal_models.mistakes import CAUGHT, ENDING
from tests.syncbn.equal_models.variants import VARIANTS

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(600)]

_PROGRAM = "tests.syncbn.equal_models.program"
# Those that `make test` runs: broadcasts, the tf.cond of a step, exchange of fingerprints.
_SOME = (
    "unbuilt",
    "subclassed_eagerly",
    "step_that_needs_numbers",
    "optimizer_passes",
    "mixed_float16",
    "saved_and_loaded",
    "resumed_on_the_first_rank",
    "loop_by_tape",
)
JOBS = {
    "mpi": ("mpirun", "mpi", ()),
    "horovod-mpi": ("horovodrun", "horovod", ("--mpi",)),
    "horovod-gloo": ("horovodrun", "horovod", ("--gloo",)),
    "tf": ("tf_cluster", "tf", ()),
}

Run = Callable[..., JobResult]


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Run:
    def on(job: str, module: str, *arguments: str) -> JobResult:
        fixture, backend, options = JOBS[job]
        launcher: Launcher = request.getfixturevalue(fixture)
        return launcher(2, module, [backend, *arguments], options=options, timeout=580)

    return on


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_every_style_of_program_ends_with_one_model(job: str, run: Run) -> None:
    first, second = run(job, _PROGRAM, *VARIANTS).json()
    _expect_one_model(first, second, VARIANTS)
    for mistake in CAUGHT:
        told = [answers[mistake.__name__].get("error", "") for answers in (first, second)]
        assert any("syncbn.DistributedOptimizer(optimizer)" in text for text in told), (
            f"{mistake.__name__}: neither rank noticed: {told}"
        )


@pytest.mark.parametrize("job", ["mpi", "tf"])
def test_the_commonest_styles_end_with_one_model(job: str, run: Run) -> None:
    first, second = run(job, _PROGRAM, *_SOME).json()
    _expect_one_model(first, second, _SOME)


def _expect_one_model(
    first: dict[str, Any], second: dict[str, Any], variants: Iterable[str]
) -> None:
    for name in variants:
        assert "digest" in first[name], f"{name}: {first[name]}"
        assert first[name] == second[name], f"{name}: the ranks have trained different models"


@pytest.mark.slow
def test_without_the_kernels_the_ranks_train_one_model_too(mpirun: Launcher) -> None:
    names = ("unbuilt", "optimizer_compressed", "loop_averaged_by_hand")
    slow = {"SYNCBN_NATIVE": "0"}
    first, second = mpirun(2, _PROGRAM, ["mpi", *names], environment=slow, timeout=580).json()
    _expect_one_model(first, second, names)


@pytest.mark.parametrize(
    ("job", "mistake"),
    [
        ("mpi", "plain_optimizer_with_the_layer"),
        ("tf", "unequal_starts"),
        ("mpi", "compiled_by_xla"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("horovod-mpi", "learning_rate_of_one_rank"),
                ("horovod-gloo", "plain_optimizer_with_the_layer"),
                ("tf", "plain_optimizer_with_the_layer"),
                ("mpi", "unequal_starts"),
                ("horovod-gloo", "unequal_starts"),
                ("horovod-gloo", "compiled_by_xla"),
                ("tf", "compiled_by_xla"),
                ("mpi", "weights_assigned_by_hand"),
            )
        ),
    ],
)
def test_ranks_that_train_different_models_end_the_job(job: str, mistake: str, run: Run) -> None:
    result = run(job, "tests.syncbn.equal_models.mistakes", mistake)
    told = result.transcript()
    assert result.returncode != 0, told
    assert "DivergenceError: the ranks do not train one model: after step" in told, told
    assert "differs between the ranks 0 and 1" in told
    assert ENDING[mistake][1] in told
    assert "syncbn.train_independently(optimizer)" in told
