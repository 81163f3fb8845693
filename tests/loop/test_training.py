"""What a run starts from."""

import numpy as np

from cifar_jax.loop import training


def test_balance_weights_the_loss_by_class(config):
    assert training.prepare(config).step.keywords["class_weights"] is None
    config.data.balance = True
    run = training.prepare(config)
    labels = run.data.load()[1]
    weights = np.array(run.step.keywords["class_weights"])
    np.testing.assert_allclose(weights[labels].mean(), 1)
    shares = np.bincount(labels, weights[labels], minlength=10)
    np.testing.assert_allclose(shares[shares > 0], shares.max())
