"""The task in PyTorch, eager and channels_last. Run by `python -m benchmarks.compare`.

Variants: "stock" normalises with `nn.LocalResponseNorm`; "fast" with a 1x1 convolution over the
squares and two square roots in place of `pow`, the fastest formulation known to us; "bf16" as
"fast", under torch.autocast to bfloat16: convolutions and products in half precision, parameters in
float32.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from benchmarks import task


class FastLRN(nn.Module):
    """`nn.LocalResponseNorm` of [B, C, H, W]: x · n^-0.75, n^-0.75 = rsqrt(n)·sqrt(rsqrt(n))."""

    band: Tensor
    bias: Tensor

    def __init__(self, channels: int):
        super().__init__()
        band = task.ALPHA * torch.from_numpy(task.lrn_band(channels))
        self.register_buffer("band", band[:, :, None, None])
        self.register_buffer("bias", torch.full((channels,), task.LRN_BIAS))

    def forward(self, x: Tensor) -> Tensor:
        root = F.conv2d(x * x, self.band, self.bias).rsqrt()
        return x * (root * root.sqrt())


def make_lrn(variant: str) -> Callable[[Tensor], Tensor]:
    if variant != "stock":
        return FastLRN(64)
    size = 2 * task.DEPTH_RADIUS + 1
    # PyTorch divides alpha by the size of the window; TensorFlow, and the tutorial, do not.
    return nn.LocalResponseNorm(size, alpha=size * task.ALPHA, beta=task.BETA, k=task.LRN_BIAS)


class TorchCNN:
    """A task.Contender."""

    def __init__(
        self,
        variant: str,
        weights: task.Weights,
        batches: list[task.Batch],
        device: str = "cpu",
    ):
        self._half = variant == "bf16"
        lrn = make_lrn(variant)
        self._lrn = lrn.to(device) if isinstance(lrn, nn.Module) else lrn
        self._first = weights
        self._params = {
            layer: {
                name: nn.Parameter(to_torch(array).to(device)) for name, array in arrays.items()
            }
            for layer, arrays in weights.items()
        }
        self._leaves = [p for arrays in self._params.values() for p in arrays.values()]
        self._ema = [p.detach().clone() for p in self._leaves]
        self._update_ema = get_ema_multi_avg_fn(task.EMA_DECAY)
        self._optimizer = self._make_optimizer()
        # The transposition of NHWC images is a view: their memory is channels_last already.
        self._batches = [
            (
                torch.from_numpy(b.images).to(device).permute(0, 3, 1, 2),
                torch.from_numpy(b.labels).to(device).long(),
            )
            for b in batches
        ]

    def _make_optimizer(self) -> torch.optim.Optimizer:
        decayed = [self._params[layer]["kernel"] for layer in task.DECAYED]
        others = [p for p in self._leaves if all(p is not d for d in decayed)]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": task.WEIGHT_DECAY},
            {"params": others},
        ]
        return torch.optim.SGD(groups, lr=task.RATE, fused=True)

    def reset(self) -> None:
        with torch.no_grad():
            for layer, arrays in self._first.items():
                for name, array in arrays.items():
                    self._params[layer][name].copy_(to_torch(array))
            for average, param in zip(self._ema, self._leaves, strict=True):
                average.copy_(param)

    def train(self, steps: int) -> None:
        for number in range(steps):
            self._train_step(*self._batches[number % len(self._batches)])

    def evaluate(self, steps: int) -> None:
        for number in range(steps):
            self._eval_step(self._batches[number % len(self._batches)][0])

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self._half)

    def _logits(self, images: Tensor) -> Tensor:
        """[B, 3, 24, 24], channels_last -> [B, 10]."""
        params = self._params
        x = _pool(_conv(images, params["conv1"]))
        x = self._lrn(x)
        x = self._lrn(_conv(x, params["conv2"]))
        x = _pool(x).permute(0, 2, 3, 1).flatten(1)  # [B, 2304], in the order of NHWC
        for layer in ("local3", "local4"):
            x = F.relu(F.linear(x, params[layer]["kernel"], params[layer]["bias"]), inplace=True)
        return F.linear(x, params["softmax_linear"]["kernel"], params["softmax_linear"]["bias"])

    def _train_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Returns the cross-entropy; the gradient of the L2 term is the optimiser's decay."""
        self._optimizer.zero_grad()
        with self._autocast():
            cross_entropy = F.cross_entropy(self._logits(images), labels)
        cross_entropy.backward()
        self._optimizer.step()
        self._update_ema(self._ema, self._leaves, None)
        return cross_entropy.detach()

    @torch.inference_mode()
    def _eval_step(self, images: Tensor) -> Tensor:
        with self._autocast():
            return self._logits(images).argmax(-1)

    @torch.no_grad()
    def _l2(self) -> Tensor:
        squares = [self._params[layer]["kernel"].square().sum() for layer in task.DECAYED]
        return 0.5 * task.WEIGHT_DECAY * torch.stack(squares).sum()

    def outcome(self) -> task.Outcome:
        self.reset()
        images, labels = self._batches[0]
        with torch.inference_mode(), self._autocast():
            logits = self._logits(images).float().numpy()
        classes, l2 = self._eval_step(images).numpy(), self._l2()
        loss = (self._train_step(images, labels) + l2).numpy()
        gradients = {
            layer: from_tree({name: param.grad for name, param in arrays.items()})
            for layer, arrays in self._params.items()
        }
        for layer in task.DECAYED:
            gradients[layer]["kernel"] += task.WEIGHT_DECAY * self._first[layer]["kernel"]
        updated = {layer: from_tree(arrays) for layer, arrays in self._params.items()}
        return {
            "logits": logits,
            "classes": classes,
            "loss": loss,
            **task.flat_names("gradient", gradients),
            **task.flat_names("updated", updated),
        }

    def ema(self) -> task.Weights:
        """The EMA of the parameters, in numpy's layout."""
        flat = iter(self._ema)
        return {
            layer: from_tree({name: next(flat) for name in arrays})
            for layer, arrays in self._params.items()
        }


def make(variant: str, batch_size: int) -> TorchCNN:
    return TorchCNN(variant, task.make_weights(), task.make_batches(batch_size))


def _conv(x: Tensor, params: dict[str, nn.Parameter]) -> Tensor:
    return F.relu(F.conv2d(x, params["kernel"], params["bias"], padding=2), inplace=True)


def _pool(x: Tensor) -> Tensor:
    """3x3, stride 2: ceil_mode pads at the end only, as SAME does where the size is even."""
    return F.max_pool2d(x, 3, 2, ceil_mode=True)


def to_torch(array: np.ndarray) -> Tensor:
    """HWIO -> OIHW in channels_last, [in, out] -> [out, in]; biases as they are."""
    if array.ndim == 4:
        oihw = torch.from_numpy(array.transpose(3, 2, 0, 1))
        return oihw.clone(memory_format=torch.channels_last)
    return torch.from_numpy(array.T).clone(memory_format=torch.contiguous_format)


def from_torch(tensor: Tensor) -> np.ndarray:
    """A copy, in the layout that `to_torch` takes."""
    array = tensor.detach().numpy()
    return (array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T).copy()


def from_tree(arrays: Mapping[str, Tensor | None]) -> dict[str, np.ndarray]:
    """Of what is there."""
    return {name: from_torch(tensor) for name, tensor in arrays.items() if tensor is not None}
