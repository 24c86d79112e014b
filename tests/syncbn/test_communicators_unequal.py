"""Sums of unequal length over MPI are an error with an explanation."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import Launcher

PROGRAM = """
import syncbn, tensorflow as tf
communicator = syncbn.init("mpi")
communicator.all_reduce(tf.ones([3 + communicator.rank]), "a sum")
"""


@pytest.mark.multiprocess
@pytest.mark.timeout(100)
def test_sums_of_unequal_length_say_what_this_rank_sent(
    mpirun: Launcher, script: Callable[[str], Path]
) -> None:
    result = mpirun(2, script(PROGRAM))
    assert result.returncode != 0
    told = "".join(result.stderr)
    assert "for 3 values of this rank: every rank must send the same number" in told
    assert "a_sum" in told
