"""Signals: noted once, and given back."""

import os
import signal

import pytest

from cifar_jax import stop


def test_the_second_signal_does_what_it_did_before():
    before = signal.getsignal(signal.SIGINT)
    with stop.Stop() as noted:
        os.kill(os.getpid(), signal.SIGINT)
        assert noted.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
