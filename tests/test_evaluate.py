"""The evaluation loop: every image once, averages or raw, checkpoints that come and go."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
import threading

import jax
import numpy as np
import pytest

from cifar_jax import evaluate, steps, train
from cifar_jax.data import native, shards, sources
from cifar_jax.errors import Diverged, UsageError, UserError
from cifar_jax.inputs import standardize
from cifar_jax.loop import training
from cifar_jax.workdir import checkpoint, description, pytrees
from tests.conftest import DATASET, NUM_TEST, NUM_TRAIN, random_images
from tests.telemetry.test_summaries import values


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir with checkpoints 3 and 6; made by the first test that asks, copied for each."""
    source = tmp_path_factory.mktemp("trained") / "run"

    def copy(config, workdir):
        if not source.exists():
            config.optim.ema_decay = 0.3  # so that averages and raw parameters differ
            train.train(config, source)
        shutil.copytree(source, workdir)
        config.optim.ema_decay = 0.3
        return workdir

    return copy


@pytest.fixture
def workdir(trained, config, tmp_path):
    return trained(config, tmp_path / "run")


def records(workdir, kind="eval"):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]


def expected_accuracy(config, workdir, step, split, ema=True, count=None, views=1):
    """All images at once, from the checkpoint's bytes, without the evaluation's own code."""
    model = steps.make_model(config, 10)
    state = pytrees.restore(workdir / "checkpoints", step, training.prepare(config).state)
    params = state.ema["params"] if ema else state.params
    data = sources.load(config.data, split)
    looks = [data.images[:count, 4:28, 4:28]]
    if views == 10:
        looks += [data.images[:count, y : y + 24, x : x + 24] for y in (0, 8) for x in (0, 8)]
    looks += [look[:, :, ::-1] for look in looks] if views > 1 else []
    probabilities = sum(
        jax.nn.softmax(model.apply({"params": params}, jax.vmap(standardize.by_image)(look * 1.0)))
        for look in looks
    )
    return float(np.mean(np.asarray(probabilities.argmax(-1)) == data.labels[:count]))


@pytest.mark.parametrize(
    ("options", "kind", "tag"),
    [
        ({}, "eval", "accuracy"),
        ({"ema": False}, "eval", "accuracy_raw"),
        ({"split": "train"}, "eval_train", "accuracy"),
    ],
)
def test_once_evaluates_the_newest(config, workdir, capsys, options, kind, tag):
    evaluate.evaluate(config, workdir, once=True, **options)
    (record,) = records(workdir, kind)
    split, count = options.get("split", "test"), options.get("num_examples")
    expected = expected_accuracy(config, workdir, 6, split, options.get("ema", True), count)
    assert record["step"] == 6
    assert record[tag] == pytest.approx(expected)
    assert f": precision @ 1 = {expected:.3f}\n" in capsys.readouterr().out


@pytest.mark.parametrize("views", [2, 10])
def test_views_are_averaged_and_reported_apart(config, workdir, capsys, views):
    config.eval.views = views
    evaluate.evaluate(config, workdir, once=True)
    (record,) = records(workdir)
    one = expected_accuracy(config, workdir, 6, "test")
    several = expected_accuracy(config, workdir, 6, "test", views=views)
    assert record["accuracy"] == pytest.approx(one)
    assert record[f"accuracy_of_{views}_views"] == pytest.approx(several)
    lines = [line.split(": ", 1)[1] for line in capsys.readouterr().out.splitlines()[-2:]]
    expected = [f"precision @ 1 = {one:.3f}", f"precision @ 1 over {views} views = {several:.3f}"]
    assert lines == expected


def test_images_that_were_held_out_have_a_curve_of_their_own(config, tmp_path):
    config.data.validation, config.num_steps = 0.2, 3
    train.train(config, tmp_path)
    evaluate.evaluate(config, tmp_path, once=True, split="validation")
    (record,) = records(tmp_path, "eval_validation")
    assert (record["split"], record["images"]) == ("validation", 18)


def test_a_part_of_the_split_is_told_but_no_point_of_the_curve(config, workdir, capsys):
    evaluate.evaluate(config, workdir, once=True, num_examples=21)
    expected = expected_accuracy(config, workdir, 6, "test", count=21)
    assert f": precision @ 1 = {expected:.3f}\n" in capsys.readouterr().out
    assert records(workdir) == []


def test_everything_that_is_told_of_an_evaluation(config, workdir):
    evaluate.evaluate(config, workdir, once=True)
    (record,) = records(workdir)
    data = sources.load(config.data, "test")
    counts = np.bincount(data.labels, minlength=10)
    classes = [record[f"recall/{name}"] for name in data.class_names]
    whole = np.nansum(np.multiply(classes, counts)) / counts.sum()
    assert whole == pytest.approx(record["accuracy"])
    assert 0 <= record["calibration_error"] <= 1
    assert record["cross_entropy"] == pytest.approx(np.log(10), abs=0.2)
    tags = {tag for tag, _ in values(workdir, "eval")}
    assert {"confusion", "mistakes", "precision_at_1", "recall/frog"} < tags


def test_both_parameter_sets_of_a_step_stand_side_by_side(config, workdir):
    for ema in (True, False, True):
        evaluate.evaluate(config, workdir, once=True, ema=ema)
    first, second = records(workdir)
    assert (first["parameters"], second["parameters"]) == ("raw", "ema")
    assert "accuracy" not in first and "accuracy_raw" not in second
    assert {name for name in first if "recall" in name} == {
        f"recall_raw/{name}" for name in DATASET.class_names
    }


def test_the_batch_size_has_no_influence(config, workdir):
    found = []
    for size in (16, 5, 64):
        config.eval.batch_size = size
        evaluate.evaluate(config, workdir, once=True)
        found += records(workdir)  # of one checkpoint there is one
    assert len({record["accuracy"] for record in found}) == 1
    losses = [record["cross_entropy"] for record in found]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_following_ends_with_training(config, workdir):
    evaluate.evaluate(config, workdir)
    assert [record["step"] for record in records(workdir)] == [6]


def test_following_waits_for_the_first_checkpoint_and_sees_new_ones(
    config, tmp_path, trained, capsys
):
    full = trained(config, tmp_path / "full")
    workdir = tmp_path / "growing"
    description.store(config, workdir, 0, "1 CPU device", DATASET)
    (workdir / "checkpoints").mkdir()
    follower = threading.Thread(target=evaluate.evaluate, args=(config, workdir))
    follower.start()
    while "Waiting for the first checkpoint" not in capsys.readouterr().out:
        follower.join(0.05)
        assert follower.is_alive()
    for count, step in enumerate((3, 6), start=1):
        copy = shutil.copytree(full / "checkpoints" / str(step), tmp_path / "copy")
        copy.rename(workdir / "checkpoints" / str(step))
        while len(records(workdir) if (workdir / "metrics.jsonl").exists() else []) < count:
            follower.join(0.05)
            assert follower.is_alive()
    checkpoint.mark(workdir / "checkpoints", finished=6)
    follower.join(60)
    assert not follower.is_alive()
    assert [record["step"] for record in records(workdir)] == [3, 6]


def test_a_checkpoint_deleted_under_the_reader_is_passed_over(config, workdir, monkeypatch, capsys):
    original = pytrees.restore

    def restore(folder, step, like, **options):
        if step == 6:
            shutil.rmtree(folder / "6")
        return original(folder, step, like, **options)

    monkeypatch.setattr(pytrees, "restore", restore)
    evaluate.evaluate(config, workdir)
    assert [record["step"] for record in records(workdir)] == [3]
    out = capsys.readouterr().out  # of training, if it was the first to be copied, and evaluation
    assert "deleted" not in out
    assert out.count("precision @ 1 = ") == 1


def test_evaluation_ends_as_the_diverged_run_beside_it(config, workdir):
    line = "The loss is nan at step 7."
    checkpoint.mark(workdir / "checkpoints", finished=None, diverged=line)
    with pytest.raises(Diverged, match=line) as ended:
        evaluate.evaluate(config, workdir)
    assert ended.value.exit_code == 3
    assert [record["step"] for record in records(workdir)] == [6]


def test_more_examples_than_there_are(config, workdir):
    with pytest.raises(UsageError, match=f"--num_examples=38, but the test split has {NUM_TEST}"):
        evaluate.evaluate(config, workdir, once=True, num_examples=38)
    with pytest.raises(UsageError, match=f"the train split has {NUM_TRAIN}"):
        evaluate.evaluate(config, workdir, once=True, split="train", num_examples=91)


def test_once_without_a_checkpoint(config, tmp_path):
    with pytest.raises(UserError, match="No checkpoint in .* yet. Without --once"):
        evaluate.evaluate(config, tmp_path, once=True)


def test_training_calls_evaluation_in_one_process(config, tmp_path):
    with contextlib.closing(evaluate.Evaluator(config, tmp_path)) as evaluator:
        train.train(config, tmp_path, after_checkpoint=evaluator.evaluate)
    assert [record["step"] for record in records(tmp_path)] == [3, 6]


def other_images(config, folder, data_dir):
    """Has `config` name other test images."""
    shutil.copytree(data_dir, folder)
    path = folder / "cifar-10-batches-bin" / "test_batch.bin"
    native.write(path, *random_images(NUM_TEST, seed=9))
    config.data.dir = str(folder)


def test_a_record_says_what_was_measured(config, workdir):
    evaluate.evaluate(config, workdir, once=True)
    (record,) = records(workdir)
    data = sources.load(config.data, "test")
    digest = hashlib.sha256(data.images.tobytes() + data.labels.tobytes()).hexdigest()
    assert record["dataset"] == f"cifar10-{digest[:12]}"
    assert (record["split"], record["images"]) == ("test", NUM_TEST)


def test_an_evaluation_takes_back_its_like_alone(config, workdir):
    """Once those of later checkpoints went, too."""
    path = workdir / "metrics.jsonl"
    later = '{"kind": "eval", "step": 9, "accuracy": 0.5}\n'
    start = '{"kind": "start", "step": 8, "time": 1.0}\n'
    old = '{"kind": "eval", "step": 6, "accuracy": 0.25}\n'
    path.write_text(path.read_text() + later + start + old)
    for _ in range(2):
        evaluate.evaluate(config, workdir, once=True)
    assert [record["step"] for record in records(workdir)] == [9, 6]
    assert len(records(workdir, "start")) == 2


def test_a_checkpoint_may_be_named(config, workdir):
    assert set(evaluate.evaluate(config, workdir, step=3)) == {3}
    with pytest.raises(UserError, match="Checkpoint 4 in .*: there is none; there are 3, 6"):
        evaluate.evaluate(config, workdir, step=4)
    with pytest.raises(UserError, match="is marked as the best. Train with"):
        evaluate.evaluate(config, workdir, step="best")
    checkpoint.mark(workdir / "checkpoints", best=3, best_accuracy=0.5)
    try:
        assert set(evaluate.evaluate(config, workdir, step="best")) == {3}
    finally:
        checkpoint.mark(workdir / "checkpoints", best=None, best_accuracy=None)


def test_other_images_make_a_curve_of_their_own(config, workdir, data_dir, tmp_path, capsys):
    evaluate.evaluate(config, workdir, once=True)
    (own,) = records(workdir)
    other_images(config, tmp_path / "other", data_dir)
    capsys.readouterr()
    overrides = {"data.dir": config.data.dir}
    evaluate.evaluate(None, workdir, once=True, overrides=overrides)
    assert records(workdir) == [own]
    (kind,) = {path.name for path in (workdir / "tensorboard").glob("eval_*")}
    (record,) = records(workdir, kind)
    assert record["dataset"] == f"cifar10-{kind.removeprefix('eval_')}" != own["dataset"]
    said = "These images are not those of the run's evaluations: what is measured on them is "
    assert capsys.readouterr().out.count(f"{said}recorded as '{kind}'.\n") == 1


@pytest.mark.parametrize(
    ("earlier", "own_data", "apart"),
    [
        ("", True, False),
        ("", False, True),
        ('"dataset": "another"', True, True),
        ('"accuracy": 0.5', True, False),
        ('"accuracy": 0.5', False, False),  # an old record counts as of the same images
    ],
)
def test_when_images_are_those_of_the_run(config, tmp_path, earlier, own_data, apart, capsys):
    if earlier:
        line = f'{{"kind": "eval", "step": 3, {earlier}}}\n'
        (tmp_path / "metrics.jsonl").write_text(line)
    evaluator = evaluate.Evaluator(config, tmp_path, own_data=own_data)
    writer = evaluator._open()
    writer.close()
    assert (writer._kind != "eval") == apart
    assert bool(capsys.readouterr().out) == apart


def test_naming_the_images_of_the_run_does_not_make_them_others(config, workdir):
    overrides = {
        "data.dir": json.loads((workdir / "config.json").read_text())["config"]["data"]["dir"]
    }
    evaluate.evaluate(None, workdir, once=True, overrides=overrides)
    assert len(records(workdir)) == 1


def edit_dataset(workdir, **fields):
    path = workdir / "config.json"
    record = json.loads(path.read_text())
    record["dataset"] |= fields
    path.write_text(json.dumps(record))


def test_classes_in_another_order_are_refused(config, workdir, tmp_path):
    arrays = dict(zip(("images", "labels"), random_images(NUM_TEST, seed=1), strict=True))
    overrides = {"data.name": "npz", "data.dir": str(tmp_path)}

    def evaluated(names):
        for split in sources.SPLITS:
            np.savez(tmp_path / f"{split}.npz", class_names=names, **arrays)
        return evaluate.evaluate(None, workdir, once=True, overrides=overrides)

    assert set(evaluated(DATASET.class_names)) == {6}
    with pytest.raises(UsageError) as caught:
        evaluated(DATASET.class_names[::-1])
    assert f"{workdir} was trained on classes ('airplane', " in str(caught.value)
    assert "these images have ('truck', " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [[32, 32, 1], [40, 32, 3]])
def test_images_of_another_shape_are_refused(config, workdir, shape):
    edit_dataset(workdir, image_shape=shape, mean=[0.5] * shape[2], std=[0.5] * shape[2])
    message = rf"trained on images of shape \({shape[0]}, .*, these images have \(32, 32, 3\)"
    with pytest.raises(UsageError, match=message):
        evaluate.evaluate(config, workdir, once=True)


def test_the_name_of_a_record_does_not_make_images_others(config, tmp_path):
    """Shards know their dataset's name since some version."""
    digest = evaluate.evaluator._digest(sources.load(config.data, "test"))
    line = f'{{"kind": "eval", "step": 3, "dataset": "cifar10-{digest}"}}\n'
    (tmp_path / "metrics.jsonl").write_text(line)
    for split in sources.SPLITS:
        data = sources.load(config.data, split)
        shards.write(tmp_path / "shards", split, data, 2, name="of-shards")
    config.data.shards = str(tmp_path / "shards")
    evaluator = evaluate.Evaluator(config, tmp_path)
    with contextlib.closing(evaluator._open()) as writer:
        assert writer._kind == "eval"
    assert evaluator._facts["dataset"] == f"of-shards-{digest}"


def test_classes_of_any_name_are_drawn_and_recorded(config, workdir, data_dir, tmp_path):
    other_images(config, tmp_path / "other", data_dir)
    names = ["caf\udce9", "two\nlines", "\x00", "日本", "x" * 5000, " ", "a", "a/b", "$", "\u202e"]
    edit_dataset(workdir, class_names=names)
    with contextlib.closing(evaluate.Evaluator(config, workdir)) as evaluator:
        evaluator.data = dataclasses.replace(evaluator.data, class_names=tuple(names))
        evaluator.evaluate(6)
    (record,) = records(workdir)
    assert {f"recall/{name}" for name in names} < set(record)
    assert {"confusion", "mistakes"} < {tag for tag, _ in values(workdir, "eval")}
