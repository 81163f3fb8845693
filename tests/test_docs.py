"""The documentation as a site: it is built without a warning and needs no network, its links lead
somewhere, and the code on its pages runs."""

import html
import os
import re
import subprocess
import sys
import urllib.parse
from html.parser import HTMLParser

import pytest

from cifar_jax import config, evaluate, models, train
from cifar_jax.models import overview
from cifar_jax.predict import predictor
from tests.conftest import ROOT

PAGES = ("tutorial", "your_data", "resume", "many_devices", "predict")
NOT_RUN = "<!-- not run: "  # and why, on the line above a block
MOST_NOT_RUN = 2
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """Of a built page: the ids, the addresses that it links to, and those that it loads."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads = {""}, [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids |= {values.get("id"), values.get("name")}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        address = values.get(LOADED.get(tag))
        if address and values.get("rel") not in ("prev", "next", "canonical"):
            self.loads.append(address)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The built site's folder."""
    folder = tmp_path_factory.mktemp("site")
    # Not --quiet, with which mkdocs counts no warnings.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"-d{folder}"]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


@pytest.fixture(scope="session")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html")}


def test_every_page_is_there_with_a_search_index(site, pages):
    sources = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert {path.stem for path in pages} == sources | {"404"}
    for name in ("search_index.json", "search_index.js"):
        assert "softmax" in (site / "search" / name).read_text()


def test_no_page_asks_another_host_for_anything(site, pages):
    for path, page in pages.items():
        assert page.loads
        assert [each for each in page.loads if "//" in each.partition("?")[0]] == [], path
    for path in site.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\"']*", path.read_text())
        assert found == [], path


def test_every_link_and_anchor_resolves(pages):
    for path, page in pages.items():
        if path.stem == "404":  # its addresses are those of a server's root
            continue
        for address in (*page.links, *page.loads):
            parts = urllib.parse.urlsplit(address)
            if parts.scheme or address.startswith("//"):
                continue
            target = (path.parent / urllib.parse.unquote(parts.path)).resolve()
            target = path if not parts.path else target
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path.name}: {address}"
            if target in pages:
                assert urllib.parse.unquote(parts.fragment) in pages[target].ids, address


def test_the_search_finds_a_word_without_a_server(site, browser):
    page = browser(f"file://{site}/index.html", "site")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.fill("input.md-search__input", "standardised")
    page.wait_for_selector(".md-search-result__item", state="attached", timeout=20_000)
    assert [url for url in asked if not url.startswith("file:")] == []


def test_the_reference_has_what_the_docstrings_say(site):
    text = html.unescape((site / "reference.html").read_text())
    for function in (config.recipe, train.train, evaluate.evaluate, predictor.load, models.create):
        assert f'id="{function.__module__}.{function.__name__}"' in text
        first = function.__doc__.splitlines()[0].replace("`", "")
        assert first in re.sub(r"<[^>]*>", "", text), function


def test_the_tutorials_table_is_the_models():
    rows = overview.layers(models.create("cnn", 10, "float32"), (24, 24, 3))
    page = re.sub(" +", " ", (ROOT / "docs" / "tutorial.md").read_text())
    for line in overview.markdown(rows).splitlines()[2:]:
        assert re.sub(" +", " ", line) in page


def test_the_build_imports_nothing_of_the_package(site):
    """Sources are read: a reference needs no JAX, and no import can break it."""
    code = (
        "import sys\n"
        "from mkdocs.commands.build import build\n"
        "from mkdocs.config import load_config\n"
        f"build(load_config(site_dir={str(site)!r}))\n"
        "print(*[name for name in ('jax', 'cifar_jax', 'numpy') if name in sys.modules])\n"
    )
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def blocks(name):
    """The Python of a page that runs, in its order, each block at its own line of the page; and
    how many blocks do not run."""
    lines, code, skipped = (ROOT / "docs" / f"{name}.md").read_text().splitlines(), [], 0
    inside = runs = False
    for number, line in enumerate(lines):
        if line == "```python":
            inside, runs = True, not lines[number - 1].startswith(NOT_RUN)
            skipped += not runs
        elif line == "```":
            inside = False
        elif inside and runs:
            code += [""] * (number - len(code)) + [line]
    return "\n".join(code) + "\n", skipped


@pytest.mark.parametrize("name", PAGES)
def test_the_code_of_a_page_runs_in_order(name, tmp_path):
    code, _ = blocks(name)
    script = tmp_path / f"{name}.py"  # whose lines are those of the page
    script.write_text(code)
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"PYTHONPATH": str(ROOT), "CIFAR_JAX_DATA": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    printed = done.stdout.splitlines()
    for line in code.splitlines():
        if says := re.fullmatch(r"print\(.*\)  # ([\d. \[\](),]+?)(?: on .*)?", line):
            assert says[1] in printed


def test_every_page_with_python_is_run_and_few_blocks_are_not():
    own_tests = {"new_model", "export"}  # tests/test_new_model.py, tests/test_export.py
    written = {p.stem for p in (ROOT / "docs").glob("*.md") if "```python" in p.read_text()}
    assert written == {*PAGES, *own_tests}
    assert 0 < sum(blocks(name)[1] for name in PAGES) <= MOST_NOT_RUN
