"""The learning rate over a run, for any world size."""

from typing import Any

import numpy as np
import pytest

from launcher.train.optimizer import learning_rate


def _rates(world_size: int, **options: Any) -> list[float]:
    settings = {"epochs": 8, "base": 0.1, "warmup": 2.0} | options
    return [learning_rate(progress, world_size, **settings) for progress in np.linspace(0, 8, 9)]


def test_warm_up_rises_from_base_to_base_times_world_size() -> None:
    assert _rates(4, schedule="constant") == pytest.approx([0.1, 0.25, *[0.4] * 7])
    assert _rates(1, schedule="constant") == pytest.approx([0.1] * 9)


def test_cosine_ends_at_zero_and_halves_midway() -> None:
    rates = _rates(2, schedule="cosine")
    assert rates[2] == pytest.approx(0.2)
    assert rates[5] == pytest.approx(0.1)
    assert rates[8] == pytest.approx(0.0)
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_the_step_schedule_divides_by_ten_twice() -> None:
    assert _rates(1, schedule="step", warmup=0) == pytest.approx(
        [0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.001]
    )


def test_warm_up_is_at_most_half_of_the_run() -> None:
    rate = learning_rate(0.5, 2, base=0.1, schedule="cosine", warmup=5.0, epochs=1)
    assert rate == pytest.approx(0.2)
