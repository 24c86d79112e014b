"""Which examples each rank reads, in which order, and how they are fetched and augmented."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.train.data import batches, load_dataset
from launcher.train.data.order import Sharding, epoch_order, rank_shares, steps_left
from syncbn.communicators.local import LocalCommunicator


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_ranks_share_an_epoch_without_overlap(size: int) -> None:
    order = epoch_order(103, seed=4, epoch=2)
    shares = [list(rank_shares(order, 0, 8, rank, size)) for rank in range(size)]
    assert {len(share) for share in shares} == {steps_left(103, 0, 8, size)}
    for step in zip(*shares, strict=True):
        rows = [len(part) for part in step]
        assert max(rows) - min(rows) <= 1
        assert min(rows) > 0
    everything = np.concatenate([part for share in shares for part in share])
    assert sorted(everything.tolist()) == list(range(103))
    assert not np.array_equal(order, epoch_order(103, seed=4, epoch=3))
    np.testing.assert_array_equal(order, epoch_order(103, seed=4, epoch=2))


class _Ranks(LocalCommunicator):
    """Three ranks, as far as sizes are concerned."""

    @property
    def size(self) -> int:
        return 3


@pytest.mark.parametrize(("replicas", "size"), [((), 3), ((2,), 6)])
def test_replicas_count_in_the_world_size(replicas: tuple[int, ...], size: int) -> None:
    sharding = Sharding(4, _Ranks(), *replicas)
    assert sharding.world_size == size
    assert sharding.steps(4 * size * 5) == 5
    assert sharding.fewest_rows(4 * size, 0) == 4
    (share,) = sharding.shares(np.arange(4 * size))
    assert len(share) == 4 * size // 3


def test_the_order_depends_on_seed_and_epoch() -> None:
    one, other = epoch_order(50, seed=3, epoch=4), epoch_order(50, seed=4, epoch=3)
    assert not np.array_equal(one, other)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 6))
def test_every_rank_has_rows_in_every_step_if_there_are_enough(
    count: int, batch_size: int, size: int
) -> None:
    order = np.arange(count)
    shares = [list(rank_shares(order, 0, batch_size, rank, size)) for rank in range(size)]
    steps = steps_left(count, 0, batch_size, size)
    assert {len(share) for share in shares} == {steps}
    rows = np.array([[len(part) for part in share] for share in shares])
    assert rows.sum() == count
    assert (rows > 0).all() or count < size
    # A remainder with a row for each rank is a separate step.
    usual = batch_size * size
    assert rows.sum(0).max() < usual + size
    assert np.array_equal(
        np.concatenate([np.concatenate(step) for step in zip(*shares, strict=True)]), order
    )


def test_a_global_batch_does_not_depend_on_the_world_size() -> None:
    order = epoch_order(100, seed=0, epoch=0)
    one = list(rank_shares(order, 40, 24, 0, 1))
    three = [list(rank_shares(order, 40, 8, rank, 3)) for rank in range(3)]
    for step, batch in enumerate(one):
        joined = np.concatenate([share[step] for share in three])
        np.testing.assert_array_equal(joined, batch)


@pytest.mark.parametrize(("count", "consumed"), [(100, 0), (100, 40), (23, 22), (12, 12)])
@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_replicas_get_the_shares_of_as_many_ranks(count: int, consumed: int, replicas: int) -> None:
    order, size, batch_size = epoch_order(count, seed=1, epoch=0), 2, 3
    world = size * replicas
    alone = [list(rank_shares(order, consumed, batch_size, one, world)) for one in range(world)]
    for rank in range(size):
        joined = list(rank_shares(order, consumed, batch_size, rank, size, replicas))
        assert len(joined) == steps_left(count, consumed, batch_size, world)
        own = alone[rank * replicas : (rank + 1) * replicas]
        for share, parts in zip(joined, zip(*own, strict=True), strict=True):
            np.testing.assert_array_equal(share, np.concatenate(parts))


def test_no_steps_are_left_after_the_epoch() -> None:
    assert [steps_left(12, consumed, 4, 3) for consumed in (11, 12, 13, 40)] == [1, 0, 0, 0]
    assert steps_left(0, 0, 4, 3) == 0


def test_the_reader_raises_its_error_to_the_consumer_and_stops_on_exit() -> None:
    digits = load_dataset("digits").train
    with batches(digits, [np.arange(3), np.array([10**6])]) as ready:
        assert len(next(ready)[1]) == 3
        with pytest.raises(IndexError):
            next(ready)
    with batches(digits, (np.arange(2) for _ in range(10**9))) as ready:
        next(ready)


def test_augmentation_differs_per_epoch_and_is_equal_on_all_ranks() -> None:
    plain, moved = load_dataset("digits"), load_dataset("digits", augment="flip")
    first, order = moved.train.in_epoch(0, 0)
    second, _ = moved.train.in_epoch(0, 1)
    some = order[:50]
    np.testing.assert_array_equal(first.read(some)[0][10:20], first.read(some[10:20])[0])
    assert not np.array_equal(first.read(some)[0], second.read(some)[0])
    assert not np.array_equal(first.read(some)[0], plain.train.read(some)[0])
    np.testing.assert_array_equal(first.read(some)[1], plain.train.read(some)[1])
    assert first.read(some)[0].shape == (50, 8, 8, 1)
