"""Where a run stands, and what early stopping takes note of."""

from launcher.train.train_state import Position


def test_an_equal_loss_is_no_better_one() -> None:
    position = Position()
    position.note(0.5)
    position.note(0.5)
    assert (position.best_loss, position.evaluations_since_best) == (0.5, 1)
    position.note(0.4)
    assert (position.best_loss, position.evaluations_since_best) == (0.4, 0)
