"""The report: what its page shows of one run and of several, and says of what is missing."""

import copy
import html
import json
import math
import os
import re
import shlex
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from cifar_jax import config as config_lib
from cifar_jax.errors import UserError
from cifar_jax.models.overview import LayerRow
from cifar_jax.report import charts, page, plots
from cifar_jax.report import runs as runs_lib
from cifar_jax.report.history import History, series
from cifar_jax.telemetry.predictions import Predictions
from tests.conftest import DATASET, ROOT

NAMES = ("<b>x</b>", "cat", "$dog")
CURVES = ("loss", "accuracy", "accuracy-time", "learning-rate")
BY_LAYER = ("gradient-norm", "update-ratio", "sparsity")
OF_A_RUN = ("confusion", "classes", "reliability", "model")


@pytest.fixture(scope="module")
def fields():
    """The defaults as config.json has them."""
    default = config_lib.recipe("default")
    return json.loads(default.to_json())


@pytest.fixture(scope="module", autouse=True)
def small_plots():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "DPI", 40)
        yield


def records(precision=0.5, steps=30):
    """A start, training every 10 steps and seconds, an evaluation."""
    values = {"loss": 4.0, "loss_average": 4.1, "accuracy": 0.1, "learning_rate": 0.1}
    layers = dict.fromkeys(("gradient_norm", "gradient_norm/conv1", "update_ratio/conv1"), 0.01)
    train = [
        {
            "kind": "train",
            "step": step,
            "time": 1e9 + step,
            "sparsity/conv1": 0.5,
            **values,
            **layers,
        }
        for step in range(0, steps, 10)
    ]
    evaluated = {"accuracy": precision, "accuracy_raw": precision - 0.125}
    start = {"kind": "start", "step": 0, "time": 1e9}
    return [start, *train, {"kind": "eval", "step": steps, "time": 2e9, **evaluated}]


def evaluation(images=24):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([1, 1, 1], images).astype(np.float32)
    classes = np.argsort(-probabilities, axis=1)
    return runs_lib.Evaluation(
        step=30,
        predictions=Predictions(
            labels=rng.integers(0, 3, images),
            classes=classes,
            probabilities=np.take_along_axis(probabilities, classes, 1),
            cross_entropy=rng.random(images),
        ),
        images=rng.integers(0, 256, (images, 8, 8, 3), np.uint8),
        class_names=NAMES,
        params={"conv1": {"kernel": rng.normal(size=(5, 5, 3, 64)), "bias": np.zeros(64)}},
        layers=[LayerRow("conv1", (8, 8, 64), 4864, 307200)],
    )


def make_run(fields, name="run", lines=(), evaluated=None, missing="No images here.", **changes):
    config = copy.deepcopy(fields)
    for path, value in changes.items():
        *groups, field = path.split("__")
        group = config
        for each in groups:
            group = group[each]
        group[field] = value
    record = {
        "config": config,
        "dataset": DATASET.to_json(),
        "versions": {"jax": "0.10.9"},
        "git_commit": "abc-dirty",
    }
    missing = "" if evaluated else missing
    return runs_lib.Run(name, Path("runs") / name, record, list(lines), evaluated, missing)


def write(runs, out, fields):
    return page.write(runs, out, fields).read_text()


@pytest.fixture(scope="module")
def whole(fields, tmp_path_factory):
    """The page of a run that has everything, and its folder."""
    out = tmp_path_factory.mktemp("report")
    run = make_run(fields, lines=records(), evaluated=evaluation())
    return write([run], out, fields), out


class Elements(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.all, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.all.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += f"{data} "


def text_of(page):
    return " ".join(Elements(page.partition("</head>")[2]).text.split())


def test_a_whole_run_has_every_section(whole):
    page, out = whole
    headings = re.findall(r"<h[123][^>]*>(.*?)</h[123]>", page)
    assert headings[0] == "Report: run"
    expected = """Training, Losses, Accuracy (top-1) over steps,
        Accuracy (top-1) over training time, Learning rate, Gradient norms,
        Update-to-parameter ratios, Sparsity of the activations,
        Evaluation, Confusion matrix, Recall of each class, Reliability, Model,
        Filters of the first layer, The most confident mistakes,
        Right, from the most to the least confident, Recipe, To reproduce, Versions, Config"""
    assert ", ".join(headings[1:]) == " ".join(expected.split())
    assert 'class="missing"' not in page
    files = {f"{name}.png" for name in (*CURVES, *BY_LAYER, *OF_A_RUN)}
    assert {path.name for path in out.iterdir()} == files | {"index.html"}
    assert all((out / name).stat().st_size > 1000 for name in files)


def test_the_summary_is_of_the_last_evaluation(whole):
    text = text_of(whole[0])
    assert "steps 30 · epochs 42.7 · accuracy, EMA 0.5000" in text
    assert "raw 0.3750" in text
    assert "training time 0:00:20" in text
    assert "jax 0.10.9" in text
    assert "abc-dirty" in text
    assert re.search("Most often mistaken: .* taken for ", text)


def test_the_best_accuracy_on_the_validation_split_is_told(fields, tmp_path):
    found = [(10, 0.25), (20, 0.75), (30, 0.5)]
    lines = [{"kind": "eval_validation", "step": n, "accuracy": value} for n, value in found]
    run = make_run(fields, lines=[*records(), *lines])
    page = write([run], tmp_path, fields)
    assert "0.7500 at step 20" in text_of(page)
    assert "validation images, EMA: from 0.25 to 0.5" in page


def test_nothing_is_requested_from_elsewhere(whole):
    page, _ = whole
    elements = Elements(page).all
    targets = [
        value
        for _, attributes in elements
        for name, value in attributes.items()
        if name in ("src", "srcset", "href", "data", "action", "poster")
    ]
    assert len(targets) > 30
    assert all(target.startswith(("data:", "#")) for target in targets)
    assert not re.search(r"url\(|@import|<script", page)


def test_pictures_and_tables_can_be_read_aloud(whole):
    elements = Elements(whole[0]).all
    pictures = [attributes for tag, attributes in elements if tag == "img"]
    assert len(pictures) == 2 * 11 + 1 + len(right_and_wrong())
    assert all(len(attributes["alt"]) > 10 for attributes in pictures)
    assert ("html", {"lang": "en"}) in elements
    assert all(attributes.get("scope") for tag, attributes in elements if tag == "th")
    assert "Total loss, moving average: from 4.1 to 4.1" in html.unescape(whole[0])


def right_and_wrong():
    right = evaluation().predictions.right
    return [*range(min(8, right.sum()))] + [*range(min(12, (~right).sum()))]


def test_every_plot_is_there_for_light_and_dark_pages(whole):
    pictures = [attributes for tag, attributes in Elements(whole[0]).all if tag == "img"]
    light, dark = ([p for p in pictures if p.get("class") == theme] for theme in ("light", "dark"))
    assert len(light) == len(dark) == 11
    for one, other in zip(light, dark, strict=True):
        assert one["src"] != other["src"]
        assert {**one, "src": "", "class": ""} == {**other, "src": "", "class": ""}
    style = " ".join(whole[0].partition("<style>")[2].split())
    before, query, after = style.partition("@media screen and (prefers-color-scheme: dark) {")
    assert query
    assert ".dark { display: none; }" in before
    assert after.lstrip().startswith(".light { display: none; } .dark { display: inline; }")


def test_names_are_escaped(whole):
    page, _ = whole
    assert "<b>x</b>" not in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page


def test_examples_name_the_three_most_probable_classes(whole):
    found = evaluation().predictions
    worst = max(found.probabilities[~found.right, 0])
    first = re.search(r"The most confident mistakes</h3>.*?</figcaption>", whole[0], re.DOTALL)[0]
    assert first.count("<li") == 3
    assert f"{worst:.3f}" in first.split("</li>")[0]
    assert first.count("✓") == 1


def test_missing_pieces_are_said(fields, tmp_path):
    page = write([make_run(fields, missing="No images <here>.")], tmp_path, fields)
    text = text_of(page)
    assert "runs/run has no records in metrics.jsonl yet." in text
    assert "values: Losses (loss, cross_entropy, l2); Accuracy (top-1) over steps" in text
    assert "Sparsity of the activations (sparsity/<layer>)." in text
    assert "No images <here>." in text
    assert "steps 0 · " in text
    assert "accuracy, EMA" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_the_reports_own_evaluation_stands_in_for_one_in_the_records(fields, tmp_path):
    found = evaluation()
    text = text_of(write([make_run(fields, evaluated=found)], tmp_path, fields))
    assert f"EMA {found.predictions.accuracy:.4f} ·" in text
    assert "evaluated at step 30 ·" in text


def test_a_model_without_colour_filters_and_layers_is_said(fields, tmp_path):
    found = evaluation()._replace(params={"dense": {"kernel": np.zeros((3, 3))}}, layers=[])
    text = text_of(write([make_run(fields, evaluated=found)], tmp_path, fields))
    assert "Left out: filters, as no layer is a convolution of three colours." in text
    assert "Left out: model" in text
    assert not (tmp_path / "model.png").exists()


def test_a_series_has_gaps_where_values_are_not_finite():
    values = [1.5, math.inf, math.nan, 2]
    lines = [{"step": 10 * n, "loss": value} for n, value in enumerate(values)] + [{"step": 40}]
    steps, found = series(lines, "loss")
    assert steps.tolist() == [0, 10, 20, 30]
    np.testing.assert_array_equal(found, [1.5, np.nan, np.nan, 2])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -1e30])
def test_no_value_breaks_the_page(fields, tmp_path, value):
    lines = records()
    for name in lines[1]:
        for line in lines[1:]:
            if name not in ("kind", "step"):
                line[name] = value
    lines[-1] |= {"accuracy": value, "accuracy_raw": value}
    page = write([make_run(fields, lines=lines)], tmp_path, fields)
    assert ("Losses (loss, cross_entropy, l2)" in text_of(page)) == (not math.isfinite(value))


def test_training_time_leaves_out_the_gap_before_a_resumption():
    lines = [
        {"kind": "start", "step": 0, "time": 100.0},
        {"kind": "train", "step": 0, "time": 103.0},
        {"kind": "train", "step": 10, "time": 110.0},
        {"kind": "eval", "step": 10, "time": 500.0, "accuracy": 0.25},
        {"kind": "train", "step": 20, "time": 120.0},
        {"kind": "train", "step": 25, "time": 121.0},
        {"kind": "start", "step": 11, "time": 1000.0},
        {"kind": "train", "step": 20, "time": 1007.0},
        {"kind": "eval", "step": 15, "time": 9000.0, "accuracy": 0.5},
        {"kind": "eval", "step": 15, "time": 9001.0, "accuracy_raw": 0.4},
    ]
    history = History.of(lines)
    assert [record["time"] for record in history.train] == [103.0, 110.0, 1007.0]
    assert history.wall.tolist() == [3.0, 10.0, 28.0]  # 21 of the first process, 7 of the second
    assert history.resumed == [(11, 21.0)]
    assert history.seconds(np.array([10, 15, 99])).tolist() == [10.0, 19.0, 28.0]
    assert history.steps == 21
    assert [r["accuracy"] for r in history.evals] == [0.25, 0.5]
    assert history.evals[1]["accuracy_raw"] == 0.4


def test_records_without_a_clock_have_no_training_time(fields, tmp_path):
    lines = [{k: v for k, v in line.items() if k != "time"} for line in records()]
    text = text_of(write([make_run(fields, lines=lines)], tmp_path, fields))
    assert (
        "Left out, as no record in metrics.jsonl has their values: Accuracy (top-1) over training"
        in text
    )
    assert "training time 0" not in text
    assert (tmp_path / "accuracy.png").exists()


def test_the_unit_of_time_fits():
    panel = plots.Panel("", "step", "", [plots.Line("", np.array([0.0, 10.0]), np.ones(2))])
    for seconds, unit, last in ((90, "seconds", 90), (600, "minutes", 10), (36000, "hours", 10)):
        lines = [{"kind": "start", "step": 0, "time": 0.0}]
        lines += [{"kind": "train", "step": s, "time": s * seconds / 10} for s in (0, 10)]
        shown = charts.over_time(panel, [History.of(lines)])
        assert shown.xlabel == f"training time in {unit}"
        assert shown.lines[0].x[1] == last


def test_several_runs_are_compared(fields, tmp_path):
    runs = [
        make_run(fields, "a", records(0.5), evaluation(), seed=0),
        make_run(fields, "b", records(0.75), seed=1, data__dir="/elsewhere"),
        make_run(fields, "c", records(0.625), optim__name="muon", seed=2),
        make_run(fields, "d", seed=3),  # not evaluated
    ]
    page = write(runs, tmp_path, fields)
    text = text_of(page)
    differences = "seed 0 1 2 3 data.dir /elsewhere optim.name sgd sgd muon sgd"
    assert f"Differences in config field a b c d {differences} Mean over seeds" in text
    assert "a, b 0, 1 30 0.6250 ± 0.1768" in text  # |0.5 - 0.75| / √2
    assert "±" not in text.replace("0.6250 ± 0.1768", "").replace("Mean ± standard", "")
    assert "runs/d has no records in metrics.jsonl yet." in text
    assert "calibration error" not in text.split("Training", 2)[1]  # nobody has one
    assert page.count("<details") == 4
    assert page.count("<details open") == 1
    assert {path.name for path in tmp_path.glob("confusion*")} == {"confusion-1.png"}


def test_runs_that_differ_in_more_than_the_seed_have_no_mean(fields, tmp_path):
    runs = [
        make_run(fields, "a", records(0.5), seed=0),
        make_run(fields, "b", records(0.75), seed=1, batch_size=64),
        make_run(fields, "c", records(0.75), seed=0),  # the same again
    ]
    text = text_of(write(runs, tmp_path, fields))
    assert "No two evaluated runs differ in the seed alone." in text
    assert "±" not in text


def test_curves_of_several_runs_are_told_apart(fields):
    histories = {name: History.of(records()) for name in ("a", "b")}
    panels = charts.panels_of(histories)
    for kind in (*CURVES, *BY_LAYER):
        lines = [line for panel in panels[kind] for line in panel.lines if line.drawable(False)]
        assert {(line.label, line.slot) for line in lines} == {("a", 0), ("b", 1)}, kind
    assert [panel.title for panel in panels["gradient-norm"]] == ["all layers", "conv1"]


def test_names_become_unique_and_a_workdir_is_shown_once(fields):
    runs = [
        make_run(fields)._replace(workdir=Path(path)) for path in ("x/run", "y/run", "z/../x/run")
    ]
    assert [run.name for run in runs_lib.with_unique_names(runs)] == ["x/run", "y/run"]


def test_the_command_sets_what_differs_and_is_understood(fields, tmp_path, default):
    changed = {
        "optim.learning_rate": 0.05,
        "optim.decay_params": ["local3/kernel"],
        "inputs.transforms": ["random_crop", ["brightness", "contrast"]],
        "optim.nesterov": True,
        "data.dir": "/my data/$HOME",
        "seed": 7,
    }
    run = make_run(fields, **{path.replace(".", "__"): value for path, value in changed.items()})
    run.record["config"]["of_old"] = 1  # what the defaults do not have, no flag can set
    written = write([run], tmp_path, default.to_dict())
    command = shlex.split(html.unescape(re.search(r"<pre>(.*?)</pre>", written)[1]))
    assert command[:3] == ["python", "main.py", "--workdir=NEW"]
    assert {arg.partition("=")[0].removeprefix("--config.") for arg in command[4:]} == set(changed)

    values = flags.FlagValues()
    argv = ["main.py", f"--config={ROOT / 'configs' / 'default.py'}", *command[4:]]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    for path, value in changed.items():
        expected = tuple(value) if isinstance(value, list) else value
        assert config_lib.flat(values.config)[path] == expected


def test_a_run_of_the_defaults_needs_no_more(fields, tmp_path, default):
    page = write([make_run(fields)], tmp_path, default.to_dict())
    assert "<pre>python main.py --workdir=NEW --config=configs/default.py</pre>" in page


def stored(workdir, fields):
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text(
        json.dumps({"config": fields, "dataset": DATASET.to_json(), "versions": {}})
    )
    return workdir


def test_load_keeps_why_there_is_no_evaluation(fields, tmp_path):
    workdir = stored(tmp_path / "first", fields)
    (workdir / "metrics.jsonl").write_text('{"kind": "train", "step": 0, "loss": null}\n{"ki')

    def evaluate(path):
        assert path == workdir
        raise UserError("No checkpoint yet.")

    run = runs_lib.load(workdir, evaluate)
    assert (run.name, run.evaluation, run.missing) == ("first", None, "No checkpoint yet.")
    assert [record["step"] for record in run.records] == [0]
    assert run.record["config"] == fields
    found = evaluation()
    assert runs_lib.load(workdir, lambda _: found).evaluation is found


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_load_refuses_what_is_no_workdir(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    expected = "nothing was trained there" if content is None else "is not a config of cifar_jax"
    with pytest.raises(UserError, match=expected) as caught:
        runs_lib.load(tmp_path, lambda _: evaluation())
    assert "\n" not in str(caught.value)


def test_where_nothing_can_be_written_it_is_said(fields, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^Cannot write the report to .*file: File exists\.$"):
        page.write([make_run(fields)], tmp_path / "file", fields)


def test_a_crash_leaves_the_old_page(fields, tmp_path, monkeypatch):
    path = page.write([make_run(fields)], tmp_path, fields)
    before = path.read_text()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        page.write([make_run(fields, "other")], tmp_path, fields)
    assert path.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


HOSTILE = [None, "text", [[[1]]], {"a": {"b": 1}}, -1, 10**19, 1e308, True, "", "caf\udce9\n"]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize(
    "path", ["batch_size", "seed", "data", "data.name", "data.synthetic", "model", "optim"]
)
def test_a_config_of_any_types_is_shown(fields, tmp_path, path, value):
    config = copy.deepcopy(fields)
    config["data"]["name"] = "synthetic"
    *groups, field = path.split(".")
    (config[groups[0]] if groups else config)[field] = value
    workdir = stored(tmp_path / "run", config)
    other = stored(tmp_path / "other", fields)

    def refuse(path):
        raise UserError("No checkpoint yet.")

    runs = [runs_lib.load(path, refuse) for path in (workdir, other)]
    runs = [run._replace(records=records()[-1:]) for run in runs]  # one chart, which is fast
    assert "No checkpoint yet." in write(runs, tmp_path / "report", fields)


@pytest.mark.parametrize("value", HOSTILE)
def test_the_rest_of_a_record_may_be_of_any_types(fields, tmp_path, value):
    names = ("versions", "git_commit", "device", "changes")
    for record in (dict.fromkeys(names, value), {"versions": {"jax": value}, "changes": [value]}):
        workdir = tmp_path / "run"
        workdir.mkdir(exist_ok=True)
        (workdir / "config.json").write_text(
            json.dumps({"config": fields, "dataset": DATASET.to_json(), **record})
        )
        run = runs_lib.load(workdir, lambda _: None)._replace(missing="None.")
        assert "None." in write([run], tmp_path / "report", fields)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"config": ' + '{"a": ' * 300 + "1" + "}" * 301,
        '{"config": {"seed": ' + "9" * 400 + "}}",
        '{"config": [["seed", 1]]}',
        '{"config": null}',
        "[]",
        "7",
    ],
)
def test_json_that_is_no_config_is_a_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="is not a config of cifar_jax") as caught:
        runs_lib.load(tmp_path, lambda _: evaluation())
    assert "\n" not in str(caught.value)


def test_metrics_of_any_values_are_shown(fields, tmp_path):
    values = [1e308, -1e308, 2**63, 0, None]
    lines = [
        {"kind": kind, "step": step, "time": time, "loss": value, "accuracy": value}
        | {"gradient_norm/caf\udce9\n": value, "learning_rate": value}
        for kind in ("start", "train", "eval", "other")
        for step in (2**63 - 1, 0, 5)
        for time in (9e10, 0.0)
        for value in values
    ]
    workdir = stored(tmp_path / "run", fields)
    (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run = runs_lib.load(workdir, lambda _: None)._replace(missing="None.")
    assert len(run.records) == len(lines)
    assert "None." in write([run], tmp_path / "report", fields)


def test_changes_at_a_resumption_and_the_device_are_told(fields, tmp_path):
    run = make_run(fields)
    run.record["device"] = "1 CPU device"
    was, now = {"config.optim.learning_rate": 0.1}, {"config.optim.learning_rate": 0.5}
    run.record["changes"] = [{"step": 1020, "was": was, "is": now}]
    text = text_of(write([run], tmp_path, fields))
    assert "device 1 CPU device" in text
    expected = "from step field before since 1,020 optim.learning_rate 0.1 0.5 Versions"
    assert f"Changed when it was resumed {expected}" in text
    assert "resumed" not in text_of(write([make_run(fields)], tmp_path, fields))


def test_names_of_any_bytes_are_shown(fields, tmp_path):
    names = ("caf\udce9", "two\nlines\x00", "日本" * 200)
    found = evaluation()._replace(class_names=names)
    run = make_run(fields, "caf\udce9", records(), found)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # matplotlib, of each glyph it has not
        page.write([run], tmp_path, fields)
    assert "caf\\udce9" in (tmp_path / "index.html").read_text()


def test_the_report_follows_no_links(fields, tmp_path):
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "report"
    elsewhere.mkdir()
    out.mkdir()
    (elsewhere / "kept").write_text("kept")
    (out / "index.html").symlink_to(elsewhere / "kept")
    (out / "index.html.part").symlink_to(elsewhere / "kept")
    page.write([make_run(fields)], out, fields)
    assert (elsewhere / "kept").read_text() == "kept"
    (tmp_path / "link").symlink_to(elsewhere)
    with pytest.raises(UserError, match=r"^Cannot write the report to .*link: Too many levels"):
        page.write([make_run(fields)], tmp_path / "link", fields)


def test_a_checkpoint_that_vanishes_is_said(fields, tmp_path):
    def vanish(path):
        raise FileNotFoundError(path)

    run = runs_lib.load(stored(tmp_path / "run", fields), vanish)
    assert run.missing == "Its newest checkpoint was deleted before it was read."
