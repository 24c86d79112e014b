"""The advice for a rank that is out of memory."""

import pytest

from launcher.train.memory import advise


@pytest.mark.parametrize(
    ("shrink", "micro_batches", "advice"),
    [
        (False, 1, "use --batch-size 32, --micro-batches 2"),
        (False, 4, "use --batch-size 8, --micro-batches 8"),
        (True, 4, "start it again with --resume: it continues with 8 micro-batches"),
        (True, 64, "not even one row fits"),
        (False, 64, "not even one row fits"),
    ],
)
def test_advice_does_not_repeat_what_was_tried(
    shrink: bool, micro_batches: int, advice: str
) -> None:
    assert advice in advise(64, micro_batches, shrink)
