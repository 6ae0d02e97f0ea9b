"""Configurations and recipes: validation and renamed keys."""

from pathlib import Path

import pytest
from errors import error_of

from orthoproxy.runs.config import RENAMED, Config, fields_by_key
from orthoproxy.runs.recipes import read_config

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_changes_something(path):
    assert read_config(path).flatten() != Config().flatten()


@pytest.mark.parametrize(("text", "field"), [
    ("training: {epoch: 3}", "training.epoch"), ("training: {epochs: three}", "training.epochs"),
    ("training: {epochs: 0}", "training.epochs"), ("trainning: {epochs: 3}", "trainning"), ("training: 3", "training"),
    ("data: {name: csv}", "data.csv"), ("data: {name: folder}", "data.root"), ("data: {resize: crop}", "data.resize"),
    ("data: {augmentation: {crop_scale: [0.5, 0.2]}}", "data.augmentation.crop_scale"),
    ("sampler: {batch_size: 5, images_per_class: 2}", "sampler.images_per_class"),
    ("sampler: {by_category: true, images_per_class: null}", "sampler.images_per_class"),
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
    error = error_of(Config().with_overrides, {key: "anything"})
    successor = (error.hint or "").removeprefix("use ").split()[0]
    assert successor == "remove" or successor in {name[: len(successor)] for name in fields_by_key()}


def test_every_field_has_a_description():
    assert [key for key, field in fields_by_key().items() if not field.description] == []
