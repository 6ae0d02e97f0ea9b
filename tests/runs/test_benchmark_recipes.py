"""Every command in a recipe's header trains: an epoch on a stand-in with the files of the dataset, then evaluation."""

import math
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch
from stand_ins import write_cars_in_one_folder, write_cub, write_inshop, write_pictures, write_sop

import orthoproxy
from orthoproxy.cli.main import parse
from orthoproxy.cli.options import config_overrides
from orthoproxy.runs.config import Config
from orthoproxy.runs.recipes import read_config

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
DEIT = "deit_small_distilled_patch16_224"


def write_numbered_classes(root: Path) -> None:
    """Write images.csv and two pictures of each of the classes 1 to 98."""
    pictures = [(Path(f"images/{label}-{number}.jpg"), label) for label in range(1, 99) for number in range(2)]
    write_pictures(((root / path, label) for path, label in pictures), range(1, 99))
    lines = ["path,label", *(f"{path},{label}" for path, label in pictures)]
    (root / "images.csv").write_text("\n".join(lines))


# by recipe: what writes a small dataset of its kind, and the options that find it
STAND_INS: dict[str, tuple[Callable[[Path], object], dict[str, str]]] = {
    "cars98": (write_numbered_classes, {"data.csv": "images.csv", "encoder.image_size": "64"}),
    "cub100": (
        write_numbered_classes,
        {"data.csv": "images.csv", "encoder.init_from": "none", "encoder.image_size": "32"},
    ),
    "cub": (lambda root: write_cub(root, (200, 110), range(1, 201)), {"data.root": ".", "data.boxes": "true"}),
    "cars": (lambda root: write_cars_in_one_folder(root, (196, 108), range(1, 197)), {"data.root": "."}),
    "sop": (lambda root: write_sop(root, (60, 24), (30, 12), range(1, 43)), {"data.root": "."}),
    "inshop": (lambda root: write_inshop(root, (60, 24, 24), (30, 12), range(1, 43)), {"data.root": "."}),
}


def commands(recipe: Path) -> list[list[str]]:
    """The arguments of each command in the header."""
    return [shlex.split(x) for x in re.findall(r"^# .*\borthoproxy train (.+?)(?:  |$)", recipe.read_text(), re.M)]


def configuration(arguments: list[str], overrides: dict[str, object]) -> Config:
    """What the command line makes of a command, with other options over it."""
    _, options = parse(["train", *arguments])
    return read_config(RECIPES[0].parents[1] / options.config[0], overrides=config_overrides(options) | overrides)


COMMANDS = [
    pytest.param(recipe, arguments, id=f"{recipe.stem}-{order}")
    for recipe in RECIPES
    if recipe.stem != "icons"  # test_demo.py trains it
    for order, arguments in enumerate(commands(recipe))
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
    """The working directory, emptied at the end: a run of a DeiT-S leaves 700 MB."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "arguments"), COMMANDS)
def test_the_command_of_a_recipe_trains(recipe: Path, arguments: list[str], folder: Path, deit_file: Path) -> None:
    write, overrides = STAND_INS[recipe.stem]
    write(folder)
    small = {"training.epochs": 1, "data.workers": 0, **overrides}
    if read_config(recipe).encoder.init_from == "hub":
        small |= {"encoder.init_from": str(deit_file), "encoder.image_size": 32}
    config = configuration(arguments, small)
    run = orthoproxy.train(config, "run")
    assert run.records()["loss"].dropna().map(math.isfinite).all()
    assert [name for name in run.scores["model"] if name.startswith("recall@")] == [
        f"recall@{k}" for k in config.evaluation.recall_at
    ]
    assert ("category_recall@1" in run.scores["model"]) == (recipe.stem == "sop")
    assert any("bounding boxes" in note for note in run.scores["notes"]) == (recipe.stem == "cub")
    assert run.scores["selected_on"] == config.checkpoint_selection.split
    model = run.load_model()
    assert model.proxies.shape == (len(model.classes), config.encoder.embedding_dim)


@pytest.mark.slow
def test_a_deit_trains_at_the_size_of_the_recipe(folder: Path, deit_file: Path) -> None:
    write_sop(folder, (8, 4), (4, 2), range(1, 7))
    small = {"data.root": ".", "data.workers": 0, "encoder.init_from": str(deit_file), "training.epochs": 1}
    run = orthoproxy.train(read_config(RECIPES[0].with_name("sop.yaml"), overrides=small), "run")
    encoder = run.load_model().encoder
    assert (encoder.name, encoder.image_size) == (DEIT, 224) and "recall@1000" in run.scores["model"]
