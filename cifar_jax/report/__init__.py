"""The page about one or several runs."""

from importlib.util import find_spec

from cifar_jax.errors import UserError

if find_spec("matplotlib") is None:  # before a module here imports it
    raise UserError(
        "The report needs matplotlib, which is not installed: pip install 'cifar_jax[report]'."
    )
