"""Train, evaluate, report: `python main.py --config=configs/default.py --workdir=DIR`."""

from cifar_jax.loop import signals
from cifar_jax.telemetry import streams

if __name__ == "__main__":  # from here on no signal is lost, however long the imports take
    streams.protect()
    signals.listen()

from cifar_jax.__main__ import main

if __name__ == "__main__" and (code := main()):
    signals.leave(code)  # threads of XLA and Orbax may be at work, or wait for what never comes
