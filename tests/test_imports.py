"""Who may import whom, as docs/architecture.md has it, and what the package does without."""

import ast
import re
import subprocess
import sys

from tests.conftest import ROOT

PACKAGE = "cifar_jax"
EVERYWHERE = {"errors", "files", "__version__"}
ROOMS = {  # what each may import beside `EVERYWHERE` and itself
    "errors": set(),
    "files": set(),
    "devices": set(),
    "optim": set(),
    "inputs": set(),
    "ops": set(),
    "models": {"ops", "devices"},
    "data": {"devices"},
    "config": {"data", "inputs", "models", "optim", "devices"},
    "steps": {"inputs", "models", "optim", "devices"},
    "workdir": {"config", "data"},
    "telemetry": {"workdir", "config", "steps", "models", "optim"},
    "loop": {
        *("telemetry", "workdir", "config", "steps"),
        *("data", "inputs", "models", "optim", "devices"),
    },
    "members": {
        *("loop", "telemetry", "workdir", "config", "steps"),
        *("data", "models", "devices"),
    },
}
ALL = set(ROOMS)
ROOMS |= {
    "train": ALL,
    "evaluate": ALL - {"loop", "members"},
    "predict": ALL - {"loop", "members"},
    "demo": {"predict", "telemetry", "data"},
    "report": ALL - {"loop", "members"} | {"evaluate"},
}
PROGRAMS = {
    "demo/__main__",
    "main",
    "__main__",
    "data/prepare",
    "data/look",
    "workdir/__main__",
}  # start what they need


def imported(path):
    """Full names of the package's modules and names that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith(PACKAGE))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_point_one_way():
    for path in [*(ROOT / PACKAGE).rglob("*.py"), ROOT / "main.py"]:
        module = str(path.relative_to(ROOT).with_suffix("")).removeprefix(f"{PACKAGE}/")
        room = module.split("/")[0]
        if module in PROGRAMS or module == "__init__":
            continue
        for name in imported(path):
            target = name.split(".")[1]
            assert target in EVERYWHERE | {room} | ROOMS[room], f"{path} imports {name}"


def test_the_page_of_the_architecture_says_the_same():
    page = (ROOT / "docs" / "architecture.md").read_text()
    said = {}
    for name, cell in re.findall(r"^\| `(\w+)[^`]*` \|.*\| ?(.*?) ?\|$", page, re.MULTILINE):
        lacks, named = re.search(r"but ([`\w ]+)", cell), set(re.findall(r"`(\w+)`", cell))
        lacking = set(re.findall(r"`(\w+)`", lacks[1])) if lacks else set()
        said[name] = (ALL if cell.startswith("all below") else set()) - lacking | named - lacking
    assert said == ROOMS


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
