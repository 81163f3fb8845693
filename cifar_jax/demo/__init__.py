"""A page to drop a picture on: `python -m cifar_jax.demo WORKDIR`."""
