"""cifar_jax: the TensorFlow CIFAR-10 tutorial, continued in JAX.

predictor = cifar_jax.load("runs/tutorial")
predictor.classify("cat.jpg")
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load":  # imported when it is asked for: settings come before JAX
        from cifar_jax.predict.predictor import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
