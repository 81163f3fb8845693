"""Configs: what is refused before anything is written, what a resume accepts, what is stored."""

import ast
import importlib.metadata
import json
import re
import runpy
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from cifar_jax import config as config_lib
from cifar_jax import inputs, models, optim, steps
from cifar_jax.data import sources
from cifar_jax.errors import UsageError, UserError
from cifar_jax.optim.groups import assign
from cifar_jax.report import page
from cifar_jax.workdir import description
from tests.conftest import DATASET, ROOT

RECIPES = sorted((ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_small(path, default):
    recipe = config_lib.recipe(str(path))
    config_lib.check_fields(recipe, default)
    config_lib.validate(recipe)
    assert path.read_text().startswith('"""')
    # What a recipe of another network says: inputs, optimiser, length. The rest are the defaults.
    was, now = config_lib.flat(default), config_lib.flat(recipe)
    assert sum(now[field] != was[field] for field in was) <= 26


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_pattern_of_a_recipe_has_parameters_in_its_network(path):
    recipe = config_lib.recipe(path)
    jax.eval_shape(optim.make_optimizer(recipe.optim, 1.0, 10).init, parameters(recipe))


def parameters(recipe):
    """Their shapes, for CIFAR-10."""
    model = steps.make_model(recipe, num_classes=10)
    shape = inputs.image_shape(recipe.inputs)
    return jax.eval_shape(lambda: models.init(model, jax.random.key(0), shape))["params"]


def test_the_fast_recipe_follows_its_number_of_epochs():
    get_config = runpy.run_path(str(ROOT / "configs" / "fast.py"))["get_config"]
    few, many = get_config("5"), get_config()
    assert (few.num_epochs, many.num_epochs) == (5, 20)
    assert few.optim.warmup_epochs / many.optim.warmup_epochs == pytest.approx(0.25)
    assert few.inputs.random_crop.max_shift < many.inputs.random_crop.max_shift


def test_airbench_for_a_number_of_minutes():
    config = config_lib.recipe("airbench94:5,batch=500")
    assert (config.batch_size, config.dtype) == (500, "bfloat16")
    assert config.num_epochs == pytest.approx(6.9)
    assert config.inputs.curriculum == ((pytest.approx(2.5875), 24), (pytest.approx(5.175), 28))
    assert config_lib.recipe("airbench94:.1").num_epochs == 0.5
    whole = config_lib.recipe("airbench94")
    assert (whole.num_epochs, whole.inputs.curriculum, whole.dtype) == (8, (), "float32")


@pytest.mark.parametrize("argument", ["x", "5;", "batch=0", "batch=", "5batch", "-1", "minutes=5"])
def test_airbench_for_nothing_that_it_knows(argument):
    with pytest.raises(UsageError, match=f"airbench94.py:{argument}, expected minutes"):
        config_lib.recipe(f"airbench94:{argument}")


def test_airbench_sums_the_losses_of_any_batch():
    """Its rates and decays, of the sum of a batch's losses, as those of the mean."""
    for name, batch in (("airbench94", 2_000), ("airbench94:batch=250", 250)):
        config = config_lib.recipe(name)
        assert config.batch_size == batch
        groups = assign(parameters(config), config.optim)
        for name, rate in (
            ("whiten/bias", 0.053),
            ("group1/norm1/bias", 0.053),
            ("group3/norm2/bias", 0.053),
            ("linear/kernel", 0.67),
        ):
            assert groups[name].learning_rate == pytest.approx(rate * batch)
            assert groups[name].weight_decay == pytest.approx(2e-6 * batch / rate / batch)
            assert groups[name].epochs == (3 if name == "whiten/bias" else 0)
            assert (groups[name].name, groups[name].momentum) == ("sgd", 0.85)
        assert groups["whiten/kernel"].name == "frozen"
        kernels = [group for name, group in groups.items() if "conv" in name]
        assert len(kernels) == 6
        for group in kernels:
            assert (group.name, group.learning_rate, group.momentum) == ("muon", 0.24, 0.6)
            assert (group.muon_steps, group.fixed_norm, group.nesterov) == (3, True, True)


def test_a_batch_by_the_device(default):
    default.per_device_batch_size = 96
    default = config_lib.resolve(default)
    assert default.batch_size == 96  # on one device
    default.per_device_batch_size = 0
    default = config_lib.resolve(default)
    assert default.batch_size == 96


# Folders whose modules are passed a group as config.
GROUP_OF = {"inputs": "inputs", "optim": "optim", "data": "data", "sources": "data"}


def fields_read(file: Path) -> set[str]:
    """Every `a.b` in a file, as 'group.field', or as 'field' where a is the config itself."""
    tree, found = ast.parse(file.read_text()), set()
    # To validate a field is not to use it.
    tree.body = [n for n in tree.body if "validate" not in getattr(n, "name", "")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = node.value
            name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            name = name.lstrip("_")
            group = GROUP_OF.get(file.parent.name, "") if name == "config" else name
            if file.parent.name == "sources" and name == file.stem:  # its own fields
                group = f"data.{name}"
            found.add(f"{group}.{node.attr}".lstrip("."))
            if file.parent.name in ("inputs", "optim"):  # whose fields have groups of their own
                found.add(f"{file.parent.name}.{group}.{node.attr}")
    return found


def test_every_field_is_read_by_the_code(default):
    read = set().union(*map(fields_read, (ROOT / "cifar_jax").rglob("*.py")))
    unread = [path for path in config_lib.flat(default) if path not in read]
    assert not unread, f"no code reads {unread}"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch_size", 0, "config.batch_size = 0, expected more than 0."),
        ("num_steps", -1, "config.num_steps = -1, expected 0 or more."),
        ("num_epochs", float("nan"), "config.num_epochs = nan, expected more than 0."),
        ("optim.decay_factor", 0.0, "config.optim.decay_factor = 0.0, expected more than 0."),
        ("optim.decay_epochs", -1.0, "config.optim.decay_epochs = -1.0, expected more than 0."),
        ("optim.learning_rate", -0.1, "config.optim.learning_rate = -0.1, expected more than 0."),
        ("optim.momentum", 1.0, "config.optim.momentum = 1.0, expected less than 1."),
        ("optim.ema_decay", 1.0, "config.optim.ema_decay = 1.0, expected less than 1."),
        ("optim.nesterov", True, "nesterov is set without config.optim.momentum"),
        ("optim.betas", ("a", "b"), "betas = ('a', 'b'), expected two numbers from 0 to below 1."),
        ("optim.decay_params", (5,), "decay_params = (5,), expected patterns of paths"),
        ("inputs.size", (33, 33), "inputs.size = (33, 33) is larger than the images, 32x32."),
        ("inputs.transforms", ("flp",), "'flp'. Did you mean 'flip'?"),
        ("model.name", "cnnn", "Unknown config.model.name 'cnnn'. Did you mean 'cnn'?"),
        ("data.name", "cifar11", "'cifar11'. Did you mean 'cifar10'? Choices: cifar10, cifar100"),
        ("optim.schedule", "cosin", "Did you mean 'cosine'?"),
        ("optim.name", "adm", "Unknown config.optim.name 'adm'."),
        ("dtype", "float64", "Choices: float32, bfloat16."),
        ("eval.views", 3, "Unknown config.eval.views '3'. Choices: 1, 2, 6, 10."),
        ("optim.label_smoothing", 1.0, "label_smoothing = 1.0, expected less than 1."),
        ("profile.steps", (5,), "(5,), expected two steps as in (100, 110)."),
        ("profile.steps", (9, 3), "expected two steps"),
        ("summaries.images", -1, "config.summaries.images = -1, expected 0 or more."),
        ("accumulate", 3, "config.accumulate = 3 does not divide the 128 images of a device."),
        ("accumulate", 0, "config.accumulate = 0, expected more than 0."),
        ("data.placement", "disk", "Choices: auto, device, host, stream."),
        ("data.placement", "stream", "'stream' needs config.data.shards, a folder that"),
        ("data.validation", 1.5, "config.data.validation = 1.5, expected a share from 0"),
        ("data.prefetch", 0, "config.data.prefetch = 0, expected more than 0."),
        ("steps_per_call", -1, "config.steps_per_call = -1, expected 0 or more."),
        ("seed", 2**32, "expected less than 2**32"),
    ],
)
def test_impossible_values_are_refused(default, field, value, message):
    default.update_from_flattened_dict({field: value})
    with pytest.raises(UsageError, match=re.escape(message)):
        config_lib.validate(default)


def test_mixed_pairs_stay_on_one_device(default):
    default.inputs.transforms += ("mixup",)
    config_lib.validate(default)
    default.batch_size = 129
    with pytest.raises(UsageError, match="in pairs, but a device takes 129 at a time"):
        config_lib.validate(default)


def test_the_fields_of_a_source_are_its_own(default):
    default.data.synthetic.train = 0
    config_lib.validate(default)  # of 'cifar10'
    default.data.name = "synthetic"
    with pytest.raises(UsageError, match="config.data.synthetic.train = 0, expected 1 or more."):
        config_lib.validate(default)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("data.name", True),
        ("data.dir", True),
        ("data.validation", True),
        ("data.tfds.test_split", True),
        ("data.prefetch", False),
        ("inputs.size", False),
    ],
)
def test_which_fields_choose_the_images(path, expected):
    assert config_lib.chooses_images(path) == expected


def test_a_batch_must_divide_over_the_devices(default, monkeypatch):
    monkeypatch.setattr(config_lib.replicas, "num_devices", lambda wanted: 3)
    with pytest.raises(UsageError, match="batch_size = 128 is not divisible by 3 devices"):
        config_lib.validate(default)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.optim.update(learning_rat=1),
            "'optim.learning_rat'. Did you mean 'optim.lear",
        ),
        (lambda c: c.__delattr__("seed"), "Config field 'seed' is missing"),
        (lambda c: c.__setattr__("seed", "0"), "config.seed = '0' is of type str, expected int"),
    ],
)
def test_fields_are_those_of_the_default(default, change, message):
    config = ConfigDict(default.to_dict(), type_safe=False)
    change(config)
    with pytest.raises(UsageError, match=re.escape(message)):
        config_lib.check_fields(config, default)


def test_length_in_steps(default):
    assert config_lib.num_steps(default, 50_000) == 100_000
    default.num_epochs = 1.5
    assert config_lib.num_steps(default, 50_000) == 585
    default.num_steps = 7
    assert config_lib.num_steps(default, 50_000) == 7


def test_stored_config_says_where_it_comes_from(default, tmp_path):
    description.store(default, tmp_path / "run", 0, "1 CPU device", DATASET)
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["dataset"]["sizes"] == {"train": 90}
    assert description.load_dataset(tmp_path / "run") == DATASET
    installed = {each.name for each in importlib.metadata.distributions()}
    optional = installed & {description.OPTIONAL}
    assert set(record["versions"]) == {"python", *description.LIBRARIES, *optional}
    assert re.fullmatch(r"([0-9a-f]{40}(-dirty)?)?", record["git_commit"])
    default.data.dir = str(sources.data_dir(default.data))
    assert description.load(tmp_path / "run").to_dict() == default.to_dict()


@pytest.mark.parametrize("of_an_earlier_version", ["no dataset", "data.source"])
def test_a_workdir_of_an_earlier_version_is_refused(default, tmp_path, of_an_earlier_version):
    description.store(default, tmp_path, 0, "1 CPU device", DATASET)
    record = json.loads((tmp_path / "config.json").read_text())
    if of_an_earlier_version == "no dataset":
        del record["dataset"]
    else:
        record["config"]["data"]["source"] = record["config"]["data"].pop("name")
    (tmp_path / "config.json").write_text(json.dumps(record))
    for read in (
        lambda: description.check_same_run(default, tmp_path),  # train
        lambda: description.load_for_eval(tmp_path, {}, wait=False),
        lambda: description.load_dataset(tmp_path),
        lambda: page.load(tmp_path, lambda _: None),  # report
    ):
        with pytest.raises(UserError, match="was made by an earlier version: .* another --workdir"):
            read()


def test_the_dataset_of_a_workdir_is_there_or_a_line_says_why(default, tmp_path):
    assert description.load_dataset(tmp_path) is None
    description.store(default, tmp_path, 0, "1 CPU device", DATASET)
    record = json.loads((tmp_path / "config.json").read_text())
    record["dataset"]["mean"] = "high"
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"of cifar_jax \(mean is not a list with entries"):
        description.load_dataset(tmp_path)


@pytest.mark.parametrize("path", ["seed", "data.validation"])
def test_an_evaluation_keeps_to_the_images_that_were_held_out(default, tmp_path, path):
    default.data.validation = 0.1
    description.store(default, tmp_path, 0, "1 CPU device", DATASET)
    description.load_for_eval(tmp_path, {"data.validation": 0.1}, wait=False)
    with pytest.raises(UsageError, match=f"config.{path} = 2.*in training"):
        description.load_for_eval(tmp_path, {path: 2}, wait=False)


def test_evaluation_needs_the_workdir_alone(default, tmp_path):
    default.optim.momentum = 0.5
    description.store(default, tmp_path, 0, "1 CPU device", DATASET)
    overrides = {"data.dir": "/elsewhere"}
    config = description.load_for_eval(tmp_path, overrides, wait=False)
    assert config.optim.momentum == 0.5
    assert config.data.dir == "/elsewhere"


def test_a_config_stored_before_a_field_existed_takes_its_default(default, tmp_path):
    description.store(default, tmp_path, 0, "1 CPU device", DATASET)
    path = tmp_path / "config.json"
    record = json.loads(path.read_text())
    del record["config"]["inputs"]["random_crop"]["fill"]
    path.write_text(json.dumps(record))
    config = description.load_for_eval(tmp_path, {}, wait=False)
    assert config.inputs.random_crop.fill == "zero"


def test_a_stored_config_with_a_field_of_another_type(default, tmp_path):
    description.store(default, tmp_path, 0, "1 CPU device", DATASET)
    path = tmp_path / "config.json"
    for damage in ('"batch_size": "many"', '"inputs": 3'):
        record = json.loads(path.read_text())
        record["config"].update(json.loads("{" + damage + "}"))
        path.write_text(json.dumps(record))
        with pytest.raises(UserError, match="config.json"):
            description.load_for_eval(tmp_path, {}, wait=False)


def test_a_workdir_without_config_or_with_a_damaged_one(default, tmp_path):
    with pytest.raises(UserError, match="has no config.json: nothing was trained there"):
        description.load_for_eval(tmp_path, {}, wait=False)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not a config of cifar_jax"):
        description.load(tmp_path)


def test_a_resume_accepts_another_length_and_refuses_another_run(default, tmp_path):
    assert description.check_same_run(default, tmp_path) == []
    description.store(default, tmp_path, 0, "1 CPU device", DATASET)
    default.num_steps = 5
    default.optim.learning_rate = 0.05
    default.data.dir = "/elsewhere"  # the same images, in another place: not worth a word
    assert description.check_same_run(default, tmp_path) == [
        "num_steps was 0, is 5",
        "optim.learning_rate was 0.1, is 0.05",
    ]
    record = json.loads((tmp_path / "config.json").read_text())
    del record["config"]["data"]["pictures"]  # a run from before there was such a field
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert len(description.check_same_run(default, tmp_path)) == 2
    default.data.name = "synthetic"
    default.seed = 1
    with pytest.raises(UsageError, match="data.name is 'cifar10' there, 'synthetic' now"):
        description.check_same_run(default, tmp_path)


def test_a_resume_may_change_the_rates_of_groups_alone(default, tmp_path):
    default.optim.groups = ({"params": "*/bias", "learning_rate": 0.1},)
    description.store(default, tmp_path, 0, "1 CPU device", DATASET)
    default.optim.groups = ({"params": "*/bias", "learning_rate": 0.2, "weight_decay": 0.1},)
    (change,) = description.check_same_run(default, tmp_path)
    assert "optim.groups was" in change
    default.optim.groups = ({"params": "*/bias", "momentum": 0.9},)
    with pytest.raises(UsageError, match="another config: optim.groups is"):
        description.check_same_run(default, tmp_path)
