"""Every feature of the layer on every backend, against the oracle (features/ runs them)."""

import pytest

from tests.syncbn import features
from tests.syncbn.runs import ALONE, JOBS, MULTI_PROCESS, WORLDS, Runs
from tests.syncbn.worlds import mirrored


@pytest.mark.parametrize("check", features.CHECKS)
@pytest.mark.parametrize(("world", "size"), [param for param in WORLDS if param.values[0] != ALONE])
def test_feature(world: str, size: int, check: str, runs: Runs) -> None:
    reports = runs.reports(world, size)["features"][check]
    assert len(reports) == size
    for rank, report in enumerate(reports):
        for quantity, error in report["errors"].items():
            assert error <= 1e-12, f"rank {rank}, {quantity}: {error:.1e}"
    if check not in features.SEPARATE:
        assert len({report["same"] for report in reports}) == 1, "moving statistics differ in bits"


@pytest.mark.parametrize(
    ("world", "size"), [param for param in MULTI_PROCESS if param.values[0] in JOBS]
)
def test_fit_with_automatic_jit(world: str, size: int, runs: Runs) -> None:
    reports = runs.reports(world, size)["fit"]["model"]
    for report in reports:
        assert not report["jit"], "XLA cannot compile the collectives of a job"
        assert report["mean"] < 2e-6
        assert report["variance"] < 2e-6
    assert all(report["moving"] == reports[0]["moving"] for report in reports)


@pytest.mark.parametrize(
    ("world", "size"), [param for param in MULTI_PROCESS if param.values[0] in JOBS]
)
def test_forgotten_init_is_an_error_with_the_remedy(world: str, size: int, runs: Runs) -> None:
    for rank, told in enumerate(runs.reports(world, size)["before init"]["told"]):
        assert f"rank {rank} of {size}" in told
        assert "call syncbn.init()" in told


@pytest.mark.parametrize("check", ["group of one", "two groups", "group of all"])
def test_groups_of_four_replicas(check: str) -> None:
    for rank, report in enumerate(features.CHECKS[check](mirrored(4))):
        for quantity, error in report["errors"].items():
            assert error <= 1e-12, f"rank {rank}, {quantity}: {error:.1e}"
