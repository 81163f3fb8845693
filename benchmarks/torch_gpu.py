"""The task in PyTorch on a GPU, at its fastest known to us: `torch_cnn` with channels_last, the LRN
as a 1x1 convolution, and one CUDA graph of a step on each batch; with and without torch.compile.

Its images are standardised and on the device. A step of `main.py`, which it is compared with, also
gathers and distorts them.
"""

from collections.abc import Callable

import torch

from benchmarks import task, torch_cnn

Run = Callable[[int], None]  # a number of steps, of which some more may be run


def steps(dtype: str, precision: str | None, batch: int, compile: bool) -> tuple[Run, Run]:
    """Training and evaluation. `precision` "highest" keeps TensorFloat-32 away."""
    tf32 = precision != "highest"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    torch._dynamo.reset()
    made = torch_cnn.TorchCNN("fast", task.make_weights(), task.make_batches(batch), "cuda")
    if compile:
        made._logits = torch.compile(made._logits)  # type: ignore[method-assign]

    def in_dtype(function: Callable) -> Callable:
        def run(*args):
            # Without its cache, whose casts a graph would not repeat.
            enabled = dtype == "bfloat16"
            with torch.autocast("cuda", torch.bfloat16, enabled=enabled, cache_enabled=False):
                return function(*args)

        return run

    train, evaluate = in_dtype(made._train_step), in_dtype(made._eval_step)
    return (
        _graph([lambda b=b: train(*b) for b in made._batches]),
        _graph([lambda b=b: evaluate(b[0]) for b in made._batches]),
    )


def _graph(functions: list[Callable]) -> Run:
    """All `functions` in one CUDA graph, which a step is a fraction of."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            for function in functions:
                function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for function in functions:
            function()

    def run(count: int) -> None:
        for _ in range(-(-count // len(functions))):
            graph.replay()
        torch.cuda.synchronize()

    return run
