"""A value that XLA computes once."""

import jax
import jax.numpy as jnp
from jax import lax

_INTEGERS = {1: jnp.int8, 2: jnp.int16, 4: jnp.int32}


def materialize(x: jax.Array) -> jax.Array:
    """`x` itself, of at most 32 bits a value, which XLA stores instead of computing it again.

    On CPUs XLA merges what it considers cheap into every fusion that reads it, and a chain of
    cheap operations, read by many, is then computed many times over; `lax.optimization_barrier`
    is gone by then. A remainder counts as expensive and is kept. By the smallest integer it
    leaves every bit pattern as it is, but turns -0.0 into 0.0, and costs two instructions.
    """
    integer = _INTEGERS[x.dtype.itemsize]
    bits = lax.bitcast_convert_type(x, integer)
    smallest = jnp.full_like(bits, jnp.iinfo(integer).min)
    return lax.bitcast_convert_type(lax.rem(bits, smallest), x.dtype)
