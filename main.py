"""Train, evaluate, report: `python main.py --config=configs/default.py --workdir=DIR`."""

import contextlib
import sys
from pathlib import Path
from typing import Any

from cifar_jax.loop import signals
from cifar_jax.telemetry import streams

if __name__ == "__main__":  # from here on no signal is lost, however long the imports take
    streams.protect()
    signals.listen()

from absl import flags

from cifar_jax import __version__, errors, files
from cifar_jax.devices import runtime
from cifar_jax.errors import UsageError

DEFAULT_CONFIG = str(Path(__file__).with_name("configs") / "default.py")

flags.DEFINE_enum("mode", "train", ("train", "eval", "train_and_eval", "report"), "What to do.")
flags.DEFINE_string("workdir", "runs/default", "Of the run; for a report, more may follow.")
flags.DEFINE_integer("from_step", -1, "train: go on from this checkpoint; later ones are renamed.")
flags.DEFINE_bool("restart", False, "train: begin at step 0; all checkpoints are renamed.")
flags.DEFINE_bool("once", False, "eval: the newest checkpoint only.")
flags.DEFINE_bool("ema", True, "eval: the EMA of the parameters; --noema for the raw ones.")
flags.DEFINE_enum("split", "test", ("train", "validation", "test"), "eval: which images.")
flags.DEFINE_integer("num_examples", 0, "eval: how many images; 0 for all.", lower_bound=0)
flags.DEFINE_bool("debug", False, "Show tracebacks, and what was set before JAX started.")
flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, for several processes.")
flags.DEFINE_integer("num_processes", -1, "How many there are; -1: as the cluster says.")
flags.DEFINE_integer("process_id", -1, "Which one this is, from 0; -1: as the cluster says.")
FLAGS = flags.FLAGS


def run(argv: list[str]) -> None:
    """Parses the flags, settles the config and dispatches by --mode."""
    from cifar_jax import config as config_lib
    from cifar_jax.devices import cluster
    from cifar_jax.evaluate import Evaluator, evaluate
    from cifar_jax.train import train
    from cifar_jax.workdir import description

    signals.unwind()
    config, overrides, others = config_lib.from_flags(argv, DEFAULT_CONFIG)
    workdir = files.resolve(FLAGS.workdir, "--workdir")
    if others and FLAGS.mode != "report":
        raise UsageError(f"Unexpected argument '{others[0]}'; flags start with --.")
    if FLAGS.coordinator and FLAGS.mode in ("eval", "report"):
        raise UsageError(f"--coordinator is for training; --mode={FLAGS.mode} is one process.")
    start: dict[str, Any] = {"from_step": None, "restart": FLAGS.restart}
    if FLAGS.from_step >= 0:
        start["from_step"] = FLAGS.from_step
    if FLAGS.restart and FLAGS.from_step >= 0:
        raise UsageError("--restart begins at step 0, --from_step elsewhere: choose one of them.")
    default = config_lib.read_default(DEFAULT_CONFIG)
    options = {"ema": FLAGS.ema, "split": FLAGS.split, "num_examples": FLAGS.num_examples}
    if FLAGS.mode == "report":
        from cifar_jax.report import page

        more = [files.resolve(other, "The workdir") for other in others]
        print(f"The report is {page.make([workdir, *more], default, overrides)}")
    elif FLAGS.mode == "eval":
        config = description.load_for_eval(workdir, default, overrides, wait=not FLAGS.once)
        own = not any(map(config_lib.chooses_images, overrides))
        evaluate(config, workdir, once=FLAGS.once, own_data=own, **options)
    else:
        with cluster.joined(config, FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id):
            config_lib.settle(config)
            if FLAGS.mode == "train":
                train(config, workdir, **start)
            else:
                with contextlib.closing(Evaluator(config, workdir, **options)) as evaluator:
                    train(config, workdir, evaluator.evaluate, **start)


def main() -> int:
    asked = {arg.lstrip("-") for arg in sys.argv[1:] if arg.startswith("-")}
    if asked & {"help", "h", "helpfull", "helpshort"}:
        print(f"{__doc__}\n{FLAGS.main_module_help()}")
        print("  --config: The recipe, a file as configs/default.py; --config.a.b=c sets a field.")
        return 0
    if "version" in asked:
        print(f"cifar_jax {__version__}")
        return 0
    debug = any(arg.lower() in ("debug", "debug=true", "debug=1") for arg in asked)
    runtime.start(debug)
    return errors.exit_code(lambda: signals.until_left(lambda: run(sys.argv)), debug)


if __name__ == "__main__":
    code = main()
    if code:  # threads of XLA and Orbax may still be at work, or wait for what never comes
        signals.leave(code)
