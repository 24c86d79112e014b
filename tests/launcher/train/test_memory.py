"""What a rank without memory is told to change."""

import pytest

from launcher.train.config import TrainConfig
from launcher.train.memory import advise


@pytest.mark.parametrize(
    ("settings", "micro_batches", "advice"),
    [
        ({}, 1, "use --batch-size 32, --micro-batches 2"),
        ({}, 4, "use --batch-size 8, --micro-batches 8"),
        ({"on_oom": "shrink"}, 4, "start it again with --resume: it goes on in 8 pieces"),
        ({"on_oom": "shrink"}, 64, "not even one row fits"),
        ({}, 64, "not even one row fits"),
    ],
)
def test_advice_is_what_has_not_been_tried(
    settings: dict[str, str], micro_batches: int, advice: str
) -> None:
    config = TrainConfig.model_validate({"batch_size": 64, **settings})
    assert advice in advise(config, micro_batches)
