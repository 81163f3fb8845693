"""The notebooks run from top to bottom, and are the scripts beside them."""

import html
import os
import re
import shutil
import subprocess

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted((ROOT / "notebooks").glob("*.py"))
_SECONDS = 120  # for a cell, compilation included

pytestmark = pytest.mark.slow
jupytext = pytest.importorskip("jupytext")
every_notebook = pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)


def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def outputs(notebook):
    return [out for cell in notebook.cells for out in cell.get("outputs", [])]


def check_shown(notebook):
    """Nothing that a reader would stumble over, and a text for every picture."""
    for output in outputs(notebook):
        text = output.get("text", "")
        assert "Warning" not in text and "Traceback" not in text
        assert not [kind for kind in output.get("data", {}) if kind.startswith("image/")]
        for tag in re.findall("<img[^>]*>", output.get("data", {}).get("text/html", "")):
            assert re.search('alt="[^"]{10,}"', tag), tag[-200:]


@every_notebook
def test_a_notebook_is_its_script_as_it_was_run(path):
    notebook = jupytext.read(path.with_suffix(".ipynb"))
    assert cells(notebook) == cells(jupytext.read(path))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    check_shown(notebook)
    assert path.with_suffix(".ipynb").stat().st_size < 400_000


@every_notebook
def test_a_notebook_links_to_what_is_there(path):
    for target in re.findall(
        r"\]\(([^)]+)\)|`(docs/\w+\.md|cifar_jax/[\w/]+\.py)`", path.read_text()
    ):
        linked, named = target
        assert (path.parent / linked if linked else ROOT / named).exists(), target


def test_badges_name_the_repository_once(tmp_path):
    for path in SCRIPTS:
        shutil.copy(path, tmp_path)
    scripts = f"SCRIPTS={tmp_path}/*.py"
    for name in ("someone/else", "owner/name"):
        command = ["make", "-s", "badges", f"REPOSITORY={name}", scripts]
        subprocess.run(command, cwd=ROOT, check=True)
    for path in SCRIPTS:
        changed = (tmp_path / path.name).read_text()
        (badge,) = (line for line in changed.splitlines() if "colab-badge" in line)
        assert badge.endswith(f"/github/owner/name/blob/main/notebooks/{path.stem}.ipynb)")
        assert changed.replace(badge + "\n", "") == path.read_text()
    done = subprocess.run(
        ["make", "badges", "REPOSITORY="], cwd=ROOT, capture_output=True, text=True
    )
    assert "make badges REPOSITORY=owner/name" in done.stderr and done.returncode


@every_notebook
def test_a_notebook_runs(path, tmp_path, monkeypatch, request):
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("CIFAR_JAX_DATA", str(tmp_path))
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    notebook = jupytext.read(path)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=_SECONDS, resources=resources).execute()
    check_shown(notebook)
    page = tmp_path / "page.html"
    page.write_text(as_page(notebook))
    shown = request.getfixturevalue("browser")(page.as_uri(), f"notebook-{path.stem}")
    assert shown.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
    shown.set_viewport_size({"width": 900, "height": shown.evaluate("document.body.scrollHeight")})


def as_page(notebook):
    """Sources and outputs one below the other, to be looked at."""
    parts = []
    for cell in notebook.cells:
        parts.append(f"<pre style='background: #f4f4f4'>{html.escape(cell.source)}</pre>")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            plain = html.escape(output.get("text", data.get("text/plain", "")))
            parts.append(data.get("text/html", f"<pre>{plain}</pre>"))
    return "<meta charset=utf-8>" + "\n".join(parts)
