"""Configurations and recipes: validation, renamed keys, and a round trip through YAML."""

from pathlib import Path

import pytest
from errors import error_of

from orthoproxy.core.errors import InputError
from orthoproxy.runs.config import RENAMED, Config, fields_by_key
from orthoproxy.runs.recipes import read_config, write_config

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_changes_something(path):
    assert read_config(path).flatten() != Config().flatten()


def test_a_configuration_survives_writing(tmp_path):
    config = read_config(RECIPES[0], overrides={"loss.args.margin": 0.2, "encoder.embedding_dim": None})
    assert config.loss.args == {"margin": 0.2} and config.encoder.embedding_dim is None
    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config


def test_later_recipes_and_overrides_win_key_by_key(tmp_path):
    (tmp_path / "a.yaml").write_text("training: {epochs: 3, seed: 1}\nloss: {args: {scale: 8}}")
    (tmp_path / "b.yaml").write_text("training: {epochs: 4}\nloss: {args: {margin: 0.2}}")
    config = read_config(tmp_path / "a.yaml", tmp_path / "b.yaml", overrides={"optimizer.lr.proxies": "1e-4"})
    assert (config.training.epochs, config.training.seed, config.optimizer.lr.proxies) == (4, 1, 1e-4)
    assert config.loss.args == {"margin": 0.2}  # arguments of one loss are not those of another


@pytest.mark.parametrize(("text", "field"), [
    ("training: {epoch: 3}", "training.epoch"), ("training: {epochs: three}", "training.epochs"),
    ("training: {epochs: 0}", "training.epochs"), ("trainning: {epochs: 3}", "trainning"), ("training: 3", "training"),
    ("data: {name: csv}", "data.csv"), ("data: {name: folder}", "data.root"), ("data: {resize: crop}", "data.resize"),
    ("data: {augmentation: {crop_scale: [0.5, 0.2]}}", "data.augmentation.crop_scale"),
    ("sampler: {batch_size: 5, images_per_class: 2}", "sampler.images_per_class"),
    ("data: {split_by: image, test_classes: [a]}", "data.test_classes"), ("data: {split_by: images}", "data.split_by"),
    ("data: {split_by: image, name: cub, root: x}", "data.split_by"),
    ("data: {boxes: true, name: sop, root: x}", "data.boxes"), ("data: {box_margin: -1}", "data.box_margin"),
    ("data: {ignore: [a], name: csv, csv: x}", "data.ignore"),
    ("data: {ignore: [/a], name: folder, root: x}", "data.ignore"),
    ("encoder: {freeze: true, embedding_dim: null}", "encoder.embedding_dim"),
    ("encoder: {freeze: true, lora_rank: 2}", "encoder.lora_rank"),
    ("encoder: {trainable_blocks: 1, lora_rank: 2}", "encoder.lora_rank"),
    ("encoder: {trainable_blocks: 1, freeze: true}", "encoder.trainable_blocks"),
    ("loss: {memory_size: 64}", "loss.memory_size"),
    ("encoder: {freeze: true, freeze_backbone_epochs: 1}", "encoder.freeze_backbone_epochs"),
    ("checkpoint_selection: {metric: recall@3}", "checkpoint_selection.metric"),
    ("evaluation: {recall_at: []}", "evaluation.recall_at"), ("training: {epochs: 3", None),
    ("training: {epochs: 3, epochs: 4}", None), ("- 1", None), ("name: \udcff", None),  # not UTF-8
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
    with pytest.raises(InputError) as caught:
        Config().with_overrides({key: "anything"})
    successor = (caught.value.hint or "").removeprefix("use ").split()[0]
    assert successor == "remove" or successor in {name[: len(successor)] for name in fields_by_key()}


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config().with_overrides({"data.root": "birds", "encoder.init_from": "run:runs/a"}).with_absolute_paths()
    assert config.data.root == str(tmp_path / "birds")
    assert config.encoder.init_from == f"run:{tmp_path}/runs/a"
    assert Config().with_absolute_paths() == Config()


def test_every_field_has_a_description():
    assert [key for key, field in fields_by_key().items() if not field.description] == []
