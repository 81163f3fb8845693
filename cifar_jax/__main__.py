"""Train, evaluate, classify, export, report.

    cifar-jax train --config=fast --workdir=DIR      # or python -m cifar_jax train …
    python main.py --config=configs/fast.py --workdir=DIR

Beside the modes: `configs` lists the recipes; `prepare`, `look` (of cifar_jax.data) and `demo`;
`completion` is for shells: source <(cifar-jax completion bash), or zsh; for fish:
cifar-jax completion fish | source.
"""

import ast
import runpy
import sys
from importlib import import_module
from pathlib import Path

from cifar_jax.loop import signals
from cifar_jax.telemetry import streams

if __name__ == "__main__":  # from here on no signal is lost, however long the imports take
    streams.protect()
    signals.listen()

from absl import flags

from cifar_jax import __version__, completion, files
from cifar_jax.devices import runtime
from cifar_jax.errors import UsageError, exit_code, unknown

WEIGHTS = ("float32", "float16", "int8")
MODES = ("train", "eval", "train_and_eval", "predict", "export", "report")
flags.DEFINE_enum("mode", "train", MODES, "What to do; predict: the pictures follow the flags.")
flags.DEFINE_string("workdir", "runs/default", "Of the run; for a report, more may follow.")
flags.DEFINE_integer("from_step", None, "train: go on from this checkpoint; rename later ones.")
flags.DEFINE_bool("restart", False, "train: begin at step 0; rename all checkpoints.")
flags.DEFINE_bool("once", False, "eval: the newest checkpoint only.")
flags.DEFINE_string("step", "", "Not training: a step or 'best'; '': the newest.")
flags.DEFINE_integer("member", None, "Not training: one of several networks, from 0 on.")
flags.DEFINE_bool("ema", True, "Not training: the EMA of the parameters; --noema for the raw ones.")
flags.DEFINE_enum("split", "test", ("train", "validation", "test"), "eval: which images.")
flags.DEFINE_integer("num_examples", 0, "eval: how many images; 0 for all.", lower_bound=0)
flags.DEFINE_bool("json", False, "predict: print a JSON object for each picture.")
flags.DEFINE_bool("csv", False, "predict: print a CSV.")
flags.DEFINE_string("show", "", "predict: a folder to draw in what the network saw, with heat map.")
flags.DEFINE_string("out", "model.stablehlo", "export: the file; its suffix says the format.")
flags.DEFINE_enum("weights", "float32", WEIGHTS, "export: how an ONNX file stores them.")
flags.DEFINE_bool("debug", False, "Show tracebacks, and what was set before JAX started.")
flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, for several processes.")
flags.DEFINE_integer("num_processes", -1, "How many there are; -1: as the cluster says.")
flags.DEFINE_integer("process_id", -1, "Which one this is, from 0; -1: as the cluster says.")
_PROGRAMS = {  # by the verb of `console`
    "prepare": "cifar_jax.data.prepare",
    "look": "cifar_jax.data.look",
    "demo": "cifar_jax.demo.__main__",
}
_MODULE = sys.argv[0] if __name__ == "__main__" else __name__  # as absl names it
_COMMANDS = (*MODES, "configs", "completion", *_PROGRAMS)
FLAGS, CONFIG_HELP = flags.FLAGS, "  --config: A recipe; --config.a.b=c: a field."


def run(argv: list[str]) -> None:
    """Parses the flags, reads the config, and dispatches by --mode."""
    from cifar_jax import config as config_lib
    from cifar_jax.devices import cluster
    from cifar_jax.evaluate import Evaluator, Evaluators, evaluate
    from cifar_jax.predict import command as predict
    from cifar_jax.predict import export
    from cifar_jax.train import train

    signals.unwind()
    config, overrides, others = config_lib.from_flags(argv)
    if others and FLAGS.mode not in ("predict", "report"):
        raise UsageError(f"Unexpected argument '{others[0]}'; flags start with --.")
    if FLAGS.coordinator and FLAGS.mode not in ("train", "train_and_eval"):
        raise UsageError(f"--coordinator is for training; --mode={FLAGS.mode} is one process.")
    step = int(FLAGS.step) if FLAGS.step.isdecimal() else FLAGS.step or None
    if step not in (None, "best") and not isinstance(step, int):
        raise UsageError(f"--step={step}, expected the step of a checkpoint, or 'best'.")
    workdir = FLAGS.workdir if FLAGS.member is None else _member(FLAGS.workdir, FLAGS.member)
    options = {"ema": FLAGS.ema, "split": FLAGS.split, "num_examples": FLAGS.num_examples}
    if FLAGS.mode == "report":
        from cifar_jax.report import page

        print(f"The report is {page.make([workdir, *others], overrides)}")
    elif FLAGS.mode == "predict":
        form = "json" if FLAGS.json else "csv" if FLAGS.csv else "table"
        predict.run(workdir, others, form, step=step, ema=FLAGS.ema, show=FLAGS.show)
    elif FLAGS.mode == "export":
        export.run(workdir, FLAGS.out, step=step, ema=FLAGS.ema, weights=FLAGS.weights)
    elif FLAGS.mode == "eval":
        evaluate(None, workdir, once=FLAGS.once, step=step, overrides=overrides, **options)
    else:
        start = {"from_step": FLAGS.from_step, "restart": FLAGS.restart}
        with cluster.joined(config, FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id):
            if FLAGS.mode == "train" and not config.checkpoint.keep_best:
                train(config, FLAGS.workdir, **start)
            else:
                options["split"] = config.checkpoint.keep_best or FLAGS.split
                kind = Evaluators if config_lib.several(config) else Evaluator
                with kind(config, FLAGS.workdir, **options) as evaluator:
                    train(config, FLAGS.workdir, evaluator.evaluate, **start)


def _member(workdir: str, number: int) -> Path:
    """The workdir of one of several networks that train together."""
    from cifar_jax.workdir import description

    folder = files.resolve(workdir, "--workdir")
    path = description.member(folder, number)
    if not path.is_dir():
        count = len(description.members(folder))
        raise UsageError(f"--member={number}, but {folder} holds {count} networks, from 0 on.")
    return path


def main() -> int:
    asked = {arg.lstrip("-") for arg in sys.argv[1:] if arg.startswith("-")}
    if asked & {"help", "h", "helpfull", "helpshort"}:
        print(__doc__, FLAGS.module_help(_MODULE), CONFIG_HELP, sep="\n")
    elif "version" in asked:
        print(f"cifar_jax {__version__}")
    else:
        debug = any(arg.lower() in ("debug", "debug=true", "debug=1") for arg in asked)
        runtime.start(debug)
        return exit_code(lambda: signals.until_left(lambda: run(sys.argv)), debug)
    return 0


def console() -> int:
    """`cifar-jax VERB …`: a mode, or one of the other commands."""
    streams.protect()
    signals.listen()
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb == "configs":
        print("\n".join(_recipes()))
        return 0
    if verb == "completion":
        shell = sys.argv[2] if len(sys.argv) > 2 else "bash"
        if shell not in completion.SHELLS:
            print(unknown("shell", shell, completion.SHELLS), file=sys.stderr)
            return 2
        print(_completion(shell))
        return 0
    if verb in _PROGRAMS:
        signals.unwind()
        code = import_module(_PROGRAMS[verb]).main(sys.argv[2:])
    else:
        if verb in MODES:
            sys.argv[1] = f"--mode={verb}"
        elif not verb.startswith("-"):
            print(unknown("command", verb, _COMMANDS), file=sys.stderr)
            return 2
        code = main()
    if code:
        signals.leave(code)  # threads of XLA and Orbax may be at work, or wait for what never comes
    return 0


def _completion(shell: str) -> str:
    ours = [flag for flag in FLAGS.flags_by_module_dict()[_MODULE] if flag.name != "mode"]
    values = {flag.name: getattr(flag.parser, "enum_values", ()) for flag in ours}
    choices = {name: few for name, few in values.items() if few}
    choices["config"] = [path.stem for path in sorted(files.RECIPES.glob("*.py"))]
    # Not by cifar_jax.config, which imports JAX: a shell waits at its start.
    default = runpy.run_path(str(files.RECIPES / "default.py"))["get_config"]().to_dict()
    names = [flag.name if flag.boolean else f"{flag.name}=" for flag in ours]
    return completion.script(
        shell, MODES, _COMMANDS[len(MODES) :], [*names, "config="], default, choices
    )


def _recipes() -> list[str]:
    """Each recipe's name, with the first line of its docstring."""
    paths = sorted(files.RECIPES.glob("*.py"))
    lines = [
        (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0] for path in paths
    ]
    return [f"{path.stem:<12} {line}" for path, line in zip(paths, lines, strict=True)]


if __name__ == "__main__":
    sys.exit(console())
