"""The oracle matrix: all kinds of shards, modes and dtypes on all backends, against the oracle.

Each job runs all its cases once (`runs.py`); each case is a separate test that reads the report.
"""

import math
from typing import Any

import pytest

from tests.syncbn import matrix
from tests.syncbn.runs import WORLDS, Runs, dtypes

# Half-precision outputs and dx are measured element by element: one rounding. In the norm that is
# at most half an ulp; the upstream gradient of a half-precision dense layer is rounded once more.
UNIT_ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8}


def tolerance(dtype: str, condition: str, quantity: str) -> float:
    """The largest ‖ours − oracle‖ / ‖oracle‖."""
    if dtype in UNIT_ROUNDOFF:
        if quantity in ("outputs", "dx", "dresidual"):
            return UNIT_ROUNDOFF[dtype]
        return 2 * UNIT_ROUNDOFF[dtype] if quantity == "upstream" else 2e-6
    if dtype == "float64":
        # The dense layer multiplies the rounding error of one dx by the outlier, 1e4.
        return 1e-11 if (condition, quantity) == ("outlier", "upstream") else 1e-12
    if condition == "outlier":
        return 1e-3 if quantity == "upstream" else 1e-4
    return 2e-6


@pytest.mark.parametrize(
    ("world", "size", "case"),
    [
        pytest.param(*param.values, case, marks=param.marks)
        for param in WORLDS
        for case in matrix.case_names(dtypes(str(param.values[0])))
    ],
)
def test_matrix(world: str, size: int, case: str, runs: Runs) -> None:
    ranks = runs.reports(world, size)["matrix"][case]
    assert len(ranks) == size
    check_case(case, ranks)


def check_case(case: str, ranks: list[dict[str, Any]]) -> None:
    """Compares the reports of the ranks with the oracle and with each other."""
    kind, _, dtype, condition = case.split("-")
    for quantity in matrix.quantities(kind):
        ours = math.sqrt(sum(rank["shares"][quantity][0] for rank in ranks))
        exact = math.sqrt(sum(rank["shares"][quantity][1] for rank in ranks))
        error = ours / (exact or 1.0)
        assert error <= tolerance(dtype, condition, quantity), f"{quantity}: {error:.1e}"
    for rank in ranks:
        for quantity, roundings in rank["roundings"].items():
            assert roundings <= 1.001, f"{quantity} is {roundings:.3f} roundings away"
        halves = {name for name, kind in rank["dtypes"].items() if kind == dtype}
        assert {"outputs", "dx"} <= halves
    assert len({rank["moving"] for rank in ranks}) == 1, "ranks' moving statistics differ in bits"
