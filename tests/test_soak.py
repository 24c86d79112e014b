"""That the soak (`make soak`) calls growth what grows, and only that."""

from dataclasses import replace

import pytest

from tests.soak.measure import COUNTS, Look, growth

STEADY = [Look(float(second), 7, 660_000_000, 92, 43, 3, 17, 10) for second in range(60)]


def test_what_varies_about_a_level_has_not_grown() -> None:
    looks = [
        replace(one, files=17 + place % 3, threads=43 + place % 2, memory=one.memory + place % 5)
        for place, one in enumerate(STEADY)
    ]
    assert growth(looks) == []
    # What fills up at the beginning is no leak.
    filling = [
        replace(one, memory=one.memory * min(place, 20) // 20) for place, one in enumerate(looks)
    ]
    assert growth(filling) == []


@pytest.mark.parametrize("name", COUNTS)
def test_one_more_now_and_then_is_growth(name: str) -> None:
    looks = [
        replace(one, **{name: getattr(one, name) + place // 10}) for place, one in enumerate(STEADY)
    ]
    assert [line.partition(":")[0] for line in growth(looks)] == [name]


def test_memory_that_goes_on_growing_is_a_leak() -> None:
    looks = [
        replace(one, memory=one.memory + 2_000_000 * place) for place, one in enumerate(STEADY)
    ]
    (line,) = growth(looks)
    assert line.startswith("memory: ")
