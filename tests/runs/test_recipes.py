"""Configurations and recipes: validation, renamed keys, and every command in a recipe's header trains."""

import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from errors import error_of
from stand_ins import write_cars_in_one_folder, write_cub, write_inshop, write_pictures, write_sop

import orthoproxy
from orthoproxy.cli.main import parse
from orthoproxy.cli.options import config_overrides
from orthoproxy.runs.config import RENAMED, Config, fields_by_key
from orthoproxy.runs.recipes import read_config

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_changes_something(path):
    assert read_config(path).flatten() != Config().flatten()


@pytest.mark.parametrize(("text", "field"), [
    ("training: {epoch: 3}", "training.epoch"), ("training: {epochs: 0}", "training.epochs"),
    ("data: {name: csv}", "data.csv"), ("data: {name: folder}", "data.root"), ("data: {resize: crop}", "data.resize"),
    ("data: {augmentation: {crop_scale: [0.5, 0.2]}}", "data.augmentation.crop_scale"),
    ("sampler: {batch_size: 5, images_per_class: 2}", "sampler.images_per_class"),
    ("sampler: {by_category: true, images_per_class: null}", "sampler.images_per_class"),
    ("data: {split_by: image, test_classes: [a]}", "data.test_classes"),
    ("data: {split_by: image, name: cub, root: x}", "data.split_by"),
    ("data: {boxes: true, name: sop, root: x}", "data.boxes"), ("training: 3", "training"),
    ("data: {ignore: [a], name: csv, csv: x}", "data.ignore"),
    ("data: {ignore: [/a], name: folder, root: x}", "data.ignore"),
    ("encoder: {freeze: true, embedding_dim: null}", "encoder.embedding_dim"),
    ("encoder: {freeze: true, lora_rank: 2}", "encoder.lora_rank"),
    ("encoder: {trainable_blocks: 1, lora_rank: 2}", "encoder.lora_rank"),
    ("encoder: {trainable_blocks: 1, freeze: true}", "encoder.trainable_blocks"),
    ("loss: {memory_size: 64}", "loss.memory_size"),
    ("encoder: {freeze: true, freeze_backbone_epochs: 1}", "encoder.freeze_backbone_epochs"),
    ("checkpoint_selection: {metric: recall@3}", "checkpoint_selection.metric"),
    ("training: {epochs: 3", None), ("training: {epochs: 3, epochs: 4}", None), ("name: \udcff", None),  # not UTF-8
])  # fmt: skip
def test_a_mistake_is_named(tmp_path, text, field):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, errors="surrogateescape")
    error = error_of(read_config, path)
    assert error.field == field and error.path == path


def test_a_mistake_in_an_override_is_not_blamed_on_the_recipe():
    error = error_of(read_config, RECIPES[0], overrides={"training.epochs": 0})
    assert (error.field, error.path) == ("training.epochs", None)


@pytest.mark.parametrize("key", RENAMED)
def test_a_key_of_earlier_versions_names_its_successor(key):
    error = error_of(Config().with_overrides, {key: "anything"})
    successor = (error.hint or "").removeprefix("use ").split()[0]
    assert successor == "remove" or successor in {name[: len(successor)] for name in fields_by_key()}


def write_numbered_classes(root: Path) -> None:
    """Write images.csv and two pictures of each of the classes 1 to 98."""
    pictures = [(Path(f"images/{label}-{number}.jpg"), label) for label in range(1, 99) for number in range(2)]
    write_pictures(((root / path, label) for path, label in pictures), range(1, 99))
    lines = ["path,label", *(f"{path},{label}" for path, label in pictures)]
    (root / "images.csv").write_text("\n".join(lines))


# by recipe: what writes a small dataset of its kind
STAND_INS: dict[str, Callable[[Path], None]] = {
    "cars98": write_numbered_classes,
    "cub100": write_numbered_classes,
    "cub": lambda root: write_cub(root, (200, 110), range(1, 201)),
    "cars": lambda root: write_cars_in_one_folder(root, (196, 108), range(1, 197)),
    "sop": lambda root: write_sop(root, (60, 24), (30, 12), range(1, 43)),
    "inshop": lambda root: write_inshop(root, (60, 24, 24), (30, 12), range(1, 43)),
}
COMMANDS = [
    pytest.param(recipe, shlex.split(arguments), id=f"{recipe.stem}-{order}")
    for recipe in RECIPES
    if recipe.stem != "icons"  # test_demo.py trains it
    for order, arguments in enumerate(re.findall(r"^# .*\borthoproxy (train .+)$", recipe.read_text(), re.M))
]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "arguments"), COMMANDS)
def test_the_command_of_a_recipe_trains(recipe: Path, arguments: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    STAND_INS[recipe.stem](tmp_path)
    _, options = parse(arguments)
    small = {"training.epochs": 1, "encoder.init_from": "none", "encoder.image_size": 32}
    small |= {"data.root": ".", "data.csv": "images.csv", "data.workers": 0, "data.boxes": recipe.stem == "cub"}
    config = read_config(RECIPES[0].parents[1] / options.config[0], overrides=config_overrides(options) | small)
    run = orthoproxy.train(config, "run")
    assert run.records()["loss"].dropna().map(math.isfinite).all()
    recalls = [f"recall@{k}" for k in config.evaluation.recall_at]
    assert [name for name in run.scores["model"] if name.startswith("recall@")] == recalls
    assert ("category_recall@1" in run.scores["model"]) == (recipe.stem == "sop")
    assert any("bounding boxes" in note for note in run.scores["notes"]) == (recipe.stem == "cub")
    assert run.scores["selected_on"] == config.checkpoint_selection.split
    model = run.load_model()
    assert model.proxies.shape == (len(model.classes), config.encoder.embedding_dim)
