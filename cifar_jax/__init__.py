"""cifar_jax: the TensorFlow CIFAR-10 tutorial, continued in JAX."""

__version__ = "0.1.0"
