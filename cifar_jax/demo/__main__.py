"""A page to drop a picture on, with the network of a run behind it: for this machine alone, or as
a folder for any web host, in which the browser runs the network.

python -m cifar_jax.demo WORKDIR
python -m cifar_jax.demo WORKDIR --static=FOLDER
"""

import argparse
import sys
from collections.abc import Sequence

from cifar_jax import errors
from cifar_jax.devices import runtime
from cifar_jax.loop import signals
from cifar_jax.telemetry import streams


def _serve(argv: Sequence[str]) -> None:
    from cifar_jax.demo import static
    from cifar_jax.demo.server import Server
    from cifar_jax.predict.predictor import load, restore

    parser = argparse.ArgumentParser(
        prog="python -m cifar_jax.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workdir", metavar="WORKDIR", help="of the run")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.add_argument("--step", help="of the checkpoint, or 'best'; else the newest")
    parser.add_argument("--static", metavar="FOLDER", help="write the page there instead")
    parser.add_argument(
        "--onnxruntime", metavar="DIR", help=f"for --static: of {static.PACKAGE}, else from npm"
    )
    args = parser.parse_args(argv)
    step = int(args.step) if args.step and args.step.isdecimal() else args.step
    if step not in (None, "best") and not isinstance(step, int):
        raise errors.UsageError(f"--step={step}, expected the step of a checkpoint, or 'best'.")
    if args.static is not None:
        folder = static.write(restore(args.workdir, step=step), args.static, args.onnxruntime)
        print(f"{folder}: its index.html is the page, once a web server has the folder.")
        return
    with Server(load(args.workdir, step=step), args.port) as server:
        print(f"{server.url} (Ctrl-C ends it)", flush=True)
        server.serve_forever()


def main(argv: Sequence[str]) -> int:
    runtime.start()
    return errors.exit_code(lambda: signals.until_left(lambda: _serve(argv)))


if __name__ == "__main__":
    streams.protect()
    signals.listen()
    signals.unwind()
    if code := main(sys.argv[1:]):
        signals.leave(code)
