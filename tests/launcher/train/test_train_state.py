"""The state of the training loop, and what early stopping records in it."""

from launcher.train.train_state import TrainState


def test_an_equal_loss_is_no_improvement() -> None:
    state = TrainState()
    state.record_evaluation(0.5)
    state.record_evaluation(0.5)
    assert (state.best_loss, state.evaluations_since_best) == (0.5, 1)
    state.record_evaluation(0.4)
    assert (state.best_loss, state.evaluations_since_best) == (0.4, 0)
