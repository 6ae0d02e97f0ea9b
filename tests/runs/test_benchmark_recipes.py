"""Every command in a recipe's header trains: a step on a stand-in with its data set's files, and on to the scores."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from stand_ins import write_cars_in_one_folder, write_cub, write_inshop, write_pictures, write_sop

import orthoproxy
from orthoproxy.data import icons
from orthoproxy.runs import evaluate as judging
from orthoproxy.runs.recipes import read_config

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
DEIT = "deit_small_distilled_patch16_224"


def write_numbered_classes(root: Path) -> None:
    """Write images.csv and two pictures of each of the classes 1 to 98."""
    pictures = [(Path(f"images/{label}-{number}.jpg"), label) for label in range(1, 99) for number in range(2)]
    write_pictures(((root / path, label) for path, label in pictures), range(1, 99))
    lines = ["path,label", *(f"{path},{label}" for path, label in pictures)]
    (root / "images.csv").write_text("\n".join(lines))


# of each recipe: what writes its data set, small, and the options that lead there
STAND_INS: dict[str, tuple[Callable[[Path], object], dict[str, str]]] = {
    "icons": (lambda root: None, {"data.root": "."}),  # rendered there
    "cars98": (write_numbered_classes, {"data.path": "images.csv", "encoder.image_size": "64"}),
    "cub": (lambda root: write_cub(root, (200, 110), range(1, 201)), {"data.root": "."}),
    "cars": (lambda root: write_cars_in_one_folder(root, (196, 108), range(1, 197)), {"data.root": "."}),
    "sop": (lambda root: write_sop(root, (60, 24), (30, 12), range(1, 43)), {"data.root": "."}),
    "inshop": (lambda root: write_inshop(root, (60, 24, 24), (30, 12), range(1, 43)), {"data.root": "."}),
}


def options(recipe: Path) -> list[dict[str, str]]:
    """The options of each command in the header, by name."""
    commands = re.findall(r"^# .*\borthoproxy train (.+?)(?:  |$)", recipe.read_text(), re.MULTILINE)
    words = [shlex.split(command) for command in commands]
    return [{name.removeprefix("--"): value for name, value in zip(w[::2], w[1::2], strict=True)} for w in words]


COMMANDS = [
    pytest.param(recipe, command, id=Path(command["out"]).name, marks=[pytest.mark.slow] * (order > 0))
    for recipe in RECIPES
    for order, command in enumerate(options(recipe))
]


@pytest.fixture(scope="module")
def deit_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file as the DeiT authors publish it: for 224 pixels, with both classifiers, under the key `model`."""
    path = tmp_path_factory.mktemp("weights") / "deit.pth"
    torch.manual_seed(0)
    tensors = timm.create_model(DEIT).state_dict()
    assert {"dist_token", "head.weight", "head_dist.weight"} <= set(tensors)
    torch.save({"model": tensors}, path)
    yield path
    path.unlink()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, emptied at the end: a run of a DeiT-S leaves 700 MB; three icon families stand for all."""
    few = {family: icons.FONTS[family] for family in ("eva", "ion", "typicons")}
    monkeypatch.setattr(icons, "FONTS", few)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    shutil.rmtree(tmp_path)


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a nested dictionary by their dotted names."""
    named: dict[str, Any] = {}
    for name, value in tree.items():
        named |= leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return named


def train_one_step(recipe: Path, command: dict[str, str], overrides: dict[str, str]) -> orthoproxy.Run:
    """Train by a recipe and check what any run of it must leave."""
    given = {**command, "training.epochs": "1", "data.workers": "0", **overrides}
    arguments = [(f"--{name}", value) for name, value in given.items() if name not in ("config", "out")]
    run = orthoproxy.train(read_config(recipe, [word for pair in arguments for word in pair]), "run")

    losses = run.records()[["loss", "metric_loss", "orthogonality"]].dropna()
    assert len(losses) == 1 and np.isfinite(losses).all(axis=None)
    asked, kept = (leaves(yaml.safe_load(path.read_text())) for path in (recipe, run.folder / "config.yaml"))
    unchanged = asked.keys() - given
    assert {name: kept[name] for name in unchanged} == {name: asked[name] for name in unchanged}
    found = [name for name in run.scores["model"] if name.startswith("recall@")]
    assert found == [f"recall@{k}" for k in asked.get("evaluation.recall_at", [1, 2, 4, 8])]
    return run


@pytest.mark.parametrize(("recipe", "command"), COMMANDS)
def test_the_command_of_a_recipe_trains(
    recipe: Path, command: dict[str, str], folder: Path, deit_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recipe.stem in STAND_INS, "a new recipe needs a stand-in here"
    write, overrides = STAND_INS[recipe.stem]
    write(folder)
    config = read_config(recipe)
    if config.encoder.weights == "hub":
        overrides = overrides | {"encoder.weights": str(deit_file), "encoder.image_size": "32"}
    monkeypatch.setattr(judging, "render_report", lambda results: "")  # takes seconds and has tests of its own
    run = train_one_step(recipe, command, overrides)
    assert run.scores["chosen_on"] == config.training.select_on
    assert any("chosen" in note for note in run.scores["notes"]) == (config.training.select_on == "none")
    width = int(command.get("encoder.embedding_dim", config.encoder.embedding_dim))
    assert run.model.proxies.shape == (len(run.model.classes), width)


def test_the_benchmarks_are_trained_at_both_published_widths_and_with_soft_orthogonality() -> None:
    for name in ("cub", "cars", "sop", "inshop"):
        recipe = RECIPES[0].with_name(f"{name}.yaml")
        plain, wide, orthogonal = options(recipe)
        assert "encoder.embedding_dim" not in plain and read_config(recipe).encoder.embedding_dim == 128
        assert wide["encoder.embedding_dim"] == "384"
        assert float(orthogonal["loss.orthogonality.weight"]) > 0 == read_config(recipe).loss.orthogonality.weight


@pytest.mark.slow
def test_a_deit_trains_at_the_size_of_the_recipe_and_is_reported(folder: Path, deit_file: Path) -> None:
    write_sop(folder, (8, 4), (4, 2), range(1, 7))
    recipe = RECIPES[0].with_name("sop.yaml")
    run = train_one_step(recipe, {}, {"data.root": ".", "encoder.weights": str(deit_file)})
    assert (run.model.encoder.name, run.model.encoder.image_size) == (DEIT, 224)
    assert "recall@1000" in run.scores["model"] and "Recall@1000" in run.report.read_text()
