"""What happens to one batch: pure functions of (state, batch), bound to their config once."""

from cifar_jax.steps.prediction import TOP, mean_of_logs, predict, predict_step
from cifar_jax.steps.state import (
    Batch,
    Metrics,
    TrainState,
    Variables,
    init_state,
    make_model,
    split_variables,
    state_shardings,
)
from cifar_jax.steps.update import Detail, Scales, image_keys, losses, ready, train_step

__all__ = [
    "TOP",
    "Batch",
    "Detail",
    "Metrics",
    "Scales",
    "TrainState",
    "Variables",
    "image_keys",
    "init_state",
    "losses",
    "make_model",
    "mean_of_logs",
    "predict",
    "predict_step",
    "ready",
    "split_variables",
    "state_shardings",
    "train_step",
]
