"""The real TensorBoard over the workdir of a short run: every tag over HTTP, then in a browser."""

import json
import re
import subprocess
import sys
import urllib.parse
import urllib.request

import pytest

pytestmark = pytest.mark.slow

TRAIN, EVAL = "tensorboard/train", "tensorboard/eval"
LAYERS = ("conv1", "conv2", "local3", "local4", "softmax_linear")
ACTIVATIONS = (*LAYERS, "pool1", "norm1", "norm2", "pool2")
NORMS = ("gradient_norm", "parameter_norm", "update_ratio")
TRAIN_SCALARS = {
    *(f"{name}{kind}" for name in ("loss", "cross_entropy", "l2") for kind in ("", "_average")),
    *("accuracy", "learning_rate", "examples_per_second", "seconds_per_batch"),
    *("data_wait", "data_fill"),
    *NORMS,
    *(f"{norm}/{layer}" for norm in NORMS for layer in LAYERS),
    *(f"sparsity/{layer}" for layer in ACTIVATIONS),
}
EVAL_SCALARS = {"precision_at_1", "cross_entropy", "calibration_error", "recall/frog"}
HISTOGRAMS = {
    *(f"{tree}/{layer}/{name}" for tree in ("params", "gradients") for layer in LAYERS
      for name in ("kernel", "bias")),
    *(f"activations/{layer}" for layer in ACTIVATIONS),
}  # fmt: skip


@pytest.fixture(scope="module")
def board(short_run):
    """The viewer's address."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={short_run}"]
    flags = ["--host=127.0.0.1", "--port=0", "--load_fast=false", "--reload_interval=1"]
    process = subprocess.Popen(command + flags, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if found := re.search(r"at (http://127\.0\.0\.1:\d+/)", line):
            yield found[1]
            break
    process.kill()
    process.communicate()


def get(board, path, body=None, **query):
    url = f"{board}data/plugin/{path}?{urllib.parse.urlencode(query)}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def wait_for(board, path, wanted):
    """The tags of each run, once there are all runs: TensorBoard reads in the background."""
    for _ in range(600):
        found = get(board, path)
        if wanted <= found.keys():
            return found
        subprocess.run(["sleep", "0.1"], check=True)
    raise AssertionError(found)


def test_every_tag_is_read_back(board):
    runs = {TRAIN, EVAL}
    scalars = wait_for(board, "scalars/tags", runs)
    assert set(scalars[TRAIN]) == TRAIN_SCALARS
    assert set(scalars[EVAL]) > EVAL_SCALARS
    loss = get(board, "scalars/scalars", run=TRAIN, tag="loss")
    assert [step for _, step, _ in loss] == list(range(6))
    assert loss[0][2] == pytest.approx(4.68, abs=0.1)
    precision = get(board, "scalars/scalars", run=EVAL, tag="precision_at_1")
    assert [step for _, step, _ in precision] == [3, 6]

    histograms = wait_for(board, "histograms/tags", {TRAIN})[TRAIN]
    assert set(histograms) == HISTOGRAMS
    kernel = get(board, "histograms/histograms", run=TRAIN, tag="params/conv1/kernel")
    assert [step for _, step, _ in kernel] == [0, 3]
    assert sum(count for _, _, count in kernel[0][2]) == pytest.approx(4800)

    images = wait_for(board, "images/tags", runs)
    assert set(images[TRAIN]) == {"inputs", "filters"}
    assert set(images[EVAL]) == {"confusion", "mistakes"}
    (text,) = wait_for(board, "text/tags", {TRAIN})[TRAIN]
    assert "1,068,298" in get(board, "text/text", run=TRAIN, tag=text)[0]["text"]
    experiment = get(board, "hparams/experiment", body={"experimentName": ""})
    assert "optim.learning_rate" in {info["name"] for info in experiment["hparamInfos"]}
    groups = get(board, "hparams/session_groups", body={
        "experimentName": "", "sliceSize": 10, "startIndex": 0,
        "allowedStatuses": ["STATUS_SUCCESS", "STATUS_RUNNING", "STATUS_UNKNOWN"],
        "colParams": [{"hparam": "optim.learning_rate"}], "includeMetrics": True,
    })  # fmt: skip
    assert groups["sessionGroups"][0]["hparams"]["optim.learning_rate"] == pytest.approx(0.1)
    values = groups["sessionGroups"][0]["metricValues"]
    assert {(v["name"]["group"], v["name"]["tag"]) for v in values} == {
        *(("eval", "precision_at_1"), ("eval", "cross_entropy"), ("train", "loss_average")),
    }


@pytest.mark.parametrize(
    ("page", "drawn", "least"),
    [
        ("timeseries", "histogram-card path", 20),
        ("scalars", "vz-line-chart2 path", 4),
        ("images", "tf-image-loader img", 2),
        ("histograms", "tf-histogram-loader path", 20),
        ("text", "tf-markdown-view table tr", 10),
        ("hparams", "tf-hparams-table-view td", 5),
    ],
)
def test_the_viewer_draws(board, browser, page, drawn, least):
    shown = browser(f"{board}#{page}", f"tensorboard_{page}")
    for _ in range(300):
        if shown.locator(drawn).count() >= least:
            break
        shown.wait_for_timeout(100)
    assert shown.locator(drawn).count() >= least
