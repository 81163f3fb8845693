"""What a network predicts."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax

from cifar_jax import models
from cifar_jax.inputs import Inputs
from cifar_jax.inputs import weights as view_weights
from cifar_jax.steps.state import Batch, Metrics, Variables

TOP = 3  # classes that a prediction names
_CHUNK = 64  # images


def predict(model: nn.Module, variables: Variables, images: jax.Array) -> jax.Array:
    """float32 logits [B, num_classes] of standardised images [B, H, W, C], in evaluation.

    On CPUs `_CHUNK` images at a time, so that a layer's output is still cached for the next."""

    def apply(variables, images):
        return models.forward(model, variables, images, train=False)[0]

    def in_chunks(variables, images):
        whole = len(images) // _CHUNK * _CHUNK
        chunks = images[:whole].reshape(-1, _CHUNK, *images.shape[1:])
        logits = lax.map(partial(apply, variables), chunks).reshape(whole, -1)
        if whole < len(images):
            logits = jnp.concatenate([logits, apply(variables, images[whole:])])
        return logits

    if len(images) <= _CHUNK:
        return apply(variables, images)
    return lax.platform_dependent(variables, images, cpu=in_chunks, default=apply)


def predict_step(
    variables: Variables,
    batch: Batch,
    *,
    model: nn.Module,
    inputs: Inputs,
    views: int = 1,
    ensemble: bool = False,
) -> Metrics:
    """Predictions of each image: "classes" int32 and "probabilities" float32 [B, `TOP`], and
    "cross_entropy" float32 [B].

    The most probable class first; fewer than `TOP` where there are fewer classes. The probabilities
    are the weighted mean of those of `views` (`Inputs.evaluate`), and of an `ensemble`, whose
    variables are stacked, the mean over its networks.
    """
    looks = inputs.evaluate(batch["image"], views)

    def log_probabilities_of(variables: Variables) -> jax.Array:
        logits = jnp.stack([predict(model, variables, images) for images in looks])
        weights = jnp.array(view_weights(views))[:, None, None]
        return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0, b=weights)

    if ensemble:
        log_mean = mean_of_logs(lax.map(log_probabilities_of, variables))
    else:
        log_mean = log_probabilities_of(variables)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(log_mean, batch["label"])
    log_probabilities, classes = lax.top_k(log_mean, min(TOP, log_mean.shape[-1]))
    return {
        "classes": classes,
        "probabilities": jnp.exp(log_probabilities),
        "cross_entropy": cross_entropy,
    }


def mean_of_logs(log_probabilities: jax.Array) -> jax.Array:
    """The logarithm of the mean over the first axis of what these are logarithms of."""
    return jax.nn.logsumexp(log_probabilities, axis=0) - jnp.log(len(log_probabilities))
