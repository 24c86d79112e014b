"""The learning rate over a run, for any world size."""

import numpy as np
import pytest

from launcher.train.config import load_config
from launcher.train.schedule import learning_rate


def _rates(world_size: int, **options: object) -> list[float]:
    settings = {"epochs": 8, "learning_rate": 0.1, "warmup_epochs": 2.0} | options
    config = load_config(settings)
    return [learning_rate(config, progress, world_size) for progress in np.linspace(0, 8, 9)]


def test_warm_up_rises_from_base_to_base_times_world_size() -> None:
    assert _rates(4, schedule="constant") == pytest.approx([0.1, 0.25, *[0.4] * 7])
    assert _rates(1, schedule="constant") == pytest.approx([0.1] * 9)


def test_cosine_ends_at_zero_and_halves_midway() -> None:
    rates = _rates(2, schedule="cosine")
    assert rates[2] == pytest.approx(0.2)
    assert rates[5] == pytest.approx(0.1)
    assert rates[8] == pytest.approx(0.0)
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_steps_of_ten() -> None:
    assert _rates(1, schedule="step", warmup_epochs=0) == pytest.approx(
        [0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.001]
    )


def test_a_short_run_is_not_all_warm_up() -> None:
    config = load_config({"epochs": 1, "learning_rate": 0.1, "warmup_epochs": 5.0})
    assert learning_rate(config, 0.5, 2) == pytest.approx(0.2)
