"""Who may import whom, as the README draws it, and what the package does without."""

import ast
import subprocess
import sys

from tests.conftest import ROOT

PACKAGE = "cifar_jax"
LOOPS = {"train", "evaluate"}
ALLOWED = {  # beside `errors` and `files`, which all may use
    "errors": set(),
    "files": set(),
    "runtime": set(),
    "augment": set(),
    "parallel": set(),
    "muon": set(),
    "optim": {"muon"},
    "checkpoint": set(),
    "records": set(),
    "predictions": set(),
    "pictures": set(),
    "overview": set(),
    "display": set(),
    "summaries": {"records"},
    "ops": set(),
    "models": {"ops"},
    "data": {"parallel", "signals", "streams"},
    "config": {"augment", "models", "optim", "parallel", "data"},
    "steps": {"augment", "models", "optim", "parallel"},
    "log": {"config", "display", "overview", "pictures", "records", "steps", "summaries"},
    "signals": set(),
    "streams": set(),
    "pytrees": {"checkpoint"},
    "saver": {"checkpoint", "optim", "parallel", "pytrees", "steps"},
    "trace": {"log", "steps"},
    "train": {"data", "steps", "parallel", "config", "optim"}
    | {"log", "display", "overview", "records", "saver", "signals", "trace"},
    "evaluate": {"data", "steps", "checkpoint", "parallel", "optim", "pytrees"}
    | {"display", "pictures", "predictions", "records", "summaries"},
    "plots": {"display", "overview", "predictions"},
    "history": {"records"},
    "charts": {"history", "plots"},
    "report": {
        "charts",
        "history",
        "config",
        "evaluate",
        "overview",
        "optim",
        "pictures",
        "plots",
        "predictions",
    }
    | {"checkpoint", "data", "records"},
    "cluster": {"config", "parallel"},
    "main": {
        "__version__",
        "runtime",
        "signals",
        "streams",
        "cluster",
        "config",
        "train",
        "evaluate",
        "report",
    },
}
WITHIN_DATA = {
    "native": set(),
    "synthetic": set(),
    "download": set(),
    "tfds": {"download"},
    "sources": {"native", "synthetic", "download", "tfds", "shards"},
    "batches": {"sources"},
    "feeds": {"batches"},
    "shards": set(),
    "prepare": {"shards", "sources"},
}


def imported(path):
    """Full names of the package's modules and names that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith(PACKAGE))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_point_one_way():
    files = [*(ROOT / PACKAGE).rglob("*.py"), ROOT / "main.py"]
    for path in files:
        parts = path.relative_to(ROOT).with_suffix("").parts
        room = parts[1] if parts[0] == PACKAGE else parts[0]
        if room == "__init__":
            continue
        for name in imported(path):
            target = name.split(".")[1]
            assert target in {room, "errors", "files"} | ALLOWED[room], f"{path} imports {name}"
            if room == target == "data" and parts[-1] != "__init__":
                inner = name.split(".")[2]
                assert inner in WITHIN_DATA[parts[-1]], f"{path} imports {name}"


def run(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_nothing_needs_tensorflow_and_the_runtime_comes_before_jax():
    modules = run(
        "import sys, importlib, pkgutil, cifar_jax, main\n"
        "print('jax' in sys.modules)\n"
        "for m in pkgutil.walk_packages(cifar_jax.__path__, 'cifar_jax.'):\n"
        "    importlib.import_module(m.name)\n"
        "print(*[m for m in ('tensorflow', 'tensorflow_datasets', 'torch') if m in sys.modules])\n"
    )
    assert modules == ["False"]
