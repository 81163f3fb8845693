"""airbench94 in PyTorch, eager and channels_last: a contender of `python -m benchmarks.compare`,
and whole trainings by the recipe, for their accuracy:

    python -m benchmarks.torch_airbench --data=DIR --dtype=bfloat16 --seeds=3

Variants: "float32", and "bfloat16" under torch.autocast: convolutions and products in half
precision, statistics, sums and parameters in float32. Trainings start from this project's initial
parameters; order, crops and flips of the images are drawn by PyTorch.
"""

import argparse
import json
import time
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import airbench_task as task
from benchmarks.task import NUM_CLASSES, Outcome
from benchmarks.torch_cnn import from_torch, to_torch


class Group(nn.Module):
    def __init__(self, channels: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1, self.norm2 = _norm(width), _norm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


def _norm(width: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(width, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad = False
    return norm


class Airbench(nn.Module):
    """[B, 3, 32, 32], channels_last, standardised -> float32 [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, task.FEATURES, 2)
        self.whiten.weight.requires_grad = False
        channels = (task.FEATURES, *task.WIDTHS)
        for number, width in enumerate(task.WIDTHS, 1):
            setattr(self, f"group{number}", Group(channels[number - 1], width))
        self.linear = nn.Linear(task.WIDTHS[-1], NUM_CLASSES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.whiten(x))
        for number in range(1, len(task.WIDTHS) + 1):
            x = getattr(self, f"group{number}")(x)
        x = F.max_pool2d(x, 3).flatten(1)
        return (self.linear(x) / x.shape[1]).float()

    def by_path(self) -> dict[str, nn.Parameter]:
        """Its parameters as this project names them."""
        names = {"weight": "kernel", "bias": "bias"}
        found = {}
        for path, param in self.named_parameters():
            layer, _, kind = path.rpartition(".")
            if param.requires_grad or layer == "whiten":
                found[f"{layer.replace('.', '/')}/{names[kind]}"] = param
        return found


class TorchAirbench:
    """A task.Contender, and its training."""

    def __init__(self, variant: str, weights: task.Weights, batch_size: int):
        self._half = variant == "bfloat16"
        self._batch_size, self._first = batch_size, weights
        self._model = Airbench().to(memory_format=torch.channels_last)
        self._params = self._model.by_path()
        self.reset()

    def reset(self) -> None:
        with torch.no_grad():
            for path, array in self._first.items():
                self._params[path].copy_(to_torch(array))
        for module in self._model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
        self._momentum: dict[str, Tensor] = {}
        self._steps = 0

    def use(self, batches: list[tuple[Tensor, Tensor]]) -> "TorchAirbench":
        self._batches = batches
        return self

    def train(self, steps: int) -> None:
        for number in range(steps):
            self.train_step(*self._batches[number % len(self._batches)])

    def evaluate(self, steps: int) -> None:
        for number in range(steps):
            self.logits(self._batches[number % len(self._batches)][0]).argmax(-1)

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        self._model.eval()
        with self._autocast():
            return self._model(images)

    def train_step(self, images: Tensor, labels: Tensor) -> Tensor:
        self._model.train()
        with self._autocast():
            logits = self._model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=task.SMOOTHING)
        self._model.zero_grad()
        loss.backward()
        self._update()
        return loss.detach()

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self._half)

    @torch.no_grad()
    def _update(self) -> None:
        steps = task.EPOCHS * task.STEPS_PER_EPOCH
        for path, param in self._params.items():
            if param.grad is None:
                continue
            if param.ndim == 4:
                gradient = self._nesterov(path, param.grad, task.MUON_MOMENTUM)
                update = orthogonalize(gradient.flatten(1)).view_as(param)
                param.mul_(len(param) ** 0.5 / param.norm())
                param.add_(update, alpha=-task.MUON_RATE * (1 - self._steps / steps))
                continue
            rate = _rate(path)
            last = task.WHITEN_EPOCHS * task.STEPS_PER_EPOCH if path == "whiten/bias" else steps
            param.grad.add_(param, alpha=task.DECAY / rate)
            gradient = self._nesterov(path, param.grad, task.MOMENTUM)
            rate *= self._batch_size * max(0.0, 1 - self._steps / last)
            param.add_(gradient, alpha=-rate)
        self._steps += 1

    def _nesterov(self, path: str, gradient: Tensor, momentum: float) -> Tensor:
        buffer = self._momentum.setdefault(path, torch.zeros_like(gradient))
        buffer.mul_(momentum).add_(gradient)
        return gradient.add(buffer, alpha=momentum)

    def outcome(self) -> Outcome:
        self.reset()
        images, labels = self._batches[0]
        logits = self.logits(images).numpy()
        l2 = sum(
            0.5 * task.DECAY / _rate(path) * float(param.detach().square().sum())
            for path, param in self._params.items()
            if param.ndim < 4  # kernels have no decay
        )
        loss = self.train_step(images, labels).numpy() + l2
        gradients = {
            f"gradient/{path}": from_torch(
                torch.zeros_like(param) if param.grad is None else param.grad  # frozen
            )
            for path, param in self._params.items()
        }
        updated = {f"updated/{path}": from_torch(param) for path, param in self._params.items()}
        return {
            "logits": logits,
            "classes": logits.argmax(-1),
            "loss": loss,
            **gradients,
            **updated,
        }


def _rate(path: str) -> float:
    return task.HEAD_RATE if path == "linear/kernel" else task.BIAS_RATE


def orthogonalize(matrix: Tensor) -> Tensor:
    """Of [n, m], n <= m, by Newton and Schulz's iteration, in float32."""
    a, b, c = 3.4445, -4.7750, 2.0315
    matrix = matrix / (matrix.norm() + 1e-12)
    for _ in range(task.MUON_STEPS):
        gram = matrix @ matrix.T
        matrix = a * matrix + (b * gram + c * gram @ gram) @ matrix
    return matrix


def make(variant: str, batch_size: int) -> TorchAirbench:
    batches = [
        (torch.from_numpy(b.images).permute(0, 3, 1, 2), torch.from_numpy(b.labels).long())
        for b in task.make_batches(batch_size)
    ]
    return TorchAirbench(variant, task.make_weights(), batch_size).use(batches)


# -- whole trainings --

_BATCH = 2_000


def trained(
    variant: str, weights: Mapping[str, np.ndarray], train: "Images", test: "Images", seed: int
) -> dict[str, float]:
    """Accuracy on the test images, over one view and over six, and the seconds of the training."""
    made = TorchAirbench(variant, {path: x.copy() for path, x in weights.items()}, _BATCH)
    generator = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    for images, labels in train.batches(generator):
        made.train_step(images, labels)
    seconds = time.perf_counter() - start
    single, six = test.accuracies(made)
    return {"accuracy": six, "single_view": single, "seconds": seconds}


class Images:
    """A split on the CPU, standardised by the training images' mean and deviation."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, mean: Tensor, std: Tensor):
        """uint8 [N, 32, 32, 3] and labels; mean and deviation [3], in pixels."""
        wide = (torch.from_numpy(images).float() - mean) / std
        self._images = wide.permute(0, 3, 1, 2)
        self._labels = torch.from_numpy(labels.astype(np.int64))

    def batches(self, generator: torch.Generator):
        """Those of `task.EPOCHS` epochs, shuffled; crops of 2 pixels, and alternating flips."""
        count = len(self._images)
        flipped = torch.rand(count, generator=generator) < 0.5
        padded = F.pad(self._images, (2,) * 4, "reflect").contiguous(
            memory_format=torch.channels_last
        )
        for epoch in range(task.EPOCHS):
            order = torch.randperm(count, generator=generator)
            for first in range(0, count - _BATCH + 1, _BATCH):
                chosen = order[first : first + _BATCH]
                shifts = torch.randint(0, 5, (2, _BATCH), generator=generator)
                batch = torch.empty(_BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
                for row in range(5):
                    for column in range(5):
                        here = (shifts[0] == row) & (shifts[1] == column)
                        batch[here] = padded[chosen[here], :, row : row + 32, column : column + 32]
                mirror = flipped[chosen] ^ (epoch % 2 == 1)
                batch[mirror] = batch[mirror].flip(-1)
                yield batch, self._labels[chosen]

    def accuracies(self, made: TorchAirbench) -> tuple[float, float]:
        """By one view, and by the six that the recipe looks at: their mean probabilities."""
        right = np.zeros(2)
        for first in range(0, len(self._images), 500):
            images, labels = (x[first : first + 500] for x in (self._images, self._labels))
            padded = F.pad(images, (1,) * 4, "reflect")
            views = [images, padded[:, :, :32, :32], padded[:, :, 2:, 2:]]
            single = made.logits(images)
            looks = [look for view in views for look in (view, view.flip(-1))]
            shares = torch.tensor([0.25, 0.25, *[0.125] * 4])[:, None, None]
            six = (shares * torch.stack([made.logits(x).softmax(-1) for x in looks])).sum(0)
            right += [float((x.argmax(-1) == labels).sum()) for x in (single, six)]
        single_view, six_views = right / len(self._images)
        return float(single_view), float(six_views)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="CIFAR-10, the binary version")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()

    from cifar_jax.devices import runtime

    runtime.start()
    import jax

    from cifar_jax import config as config_lib
    from cifar_jax.data import splits
    from cifar_jax.loop.training import prepare
    from cifar_jax.optim import paths

    config = config_lib.recipe("airbench94")
    config.data.dir = args.data
    images, labels, _ = splits.open(config.data, "train", 0).load()
    mean, std = (
        torch.from_numpy(f(images.reshape(-1, 3).astype(np.float64))).float()
        for f in (lambda x: x.mean(0), lambda x: x.std(0))
    )
    training = Images(images, labels, mean, std)
    test = Images(*splits.open(config.data, "test", 0).load()[:2], mean, std)
    for seed in range(args.seeds):
        config.seed = seed
        first = paths.flatten(jax.device_get(prepare(config).state.params))
        print(json.dumps(trained(args.dtype, first, training, test, seed)), flush=True)


if __name__ == "__main__":
    main()
