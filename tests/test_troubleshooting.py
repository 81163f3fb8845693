"""docs/troubleshooting.md: every message of the code stands there."""

import ast

import pytest

from tests.conftest import ROOT

ERRORS = {"UserError", "UsageError", "Diverged", "kind"}


def template(node):
    """A message as the page has it, with … for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
    if isinstance(node, ast.BinOp):
        return template(node.left) + template(node.right)
    return "…"


def messages():
    for path in sorted((ROOT / "cifar_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args:
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                text = template(node.args[0])
                if name in ERRORS and text.strip("….: "):
                    yield text.replace("`", "'")


@pytest.mark.parametrize("message", sorted(set(messages())))
def test_every_message_stands_in_the_page_with_a_remedy(message):
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    (line,) = (line for line in page.splitlines() if line.startswith(f"| `{message}` | "))
    assert len(line.split("` | ")[1]) > 12
