"""Every command in a recipe's header trains: an epoch on a stand-in with the files of the dataset, then evaluation."""

import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from stand_ins import write_cars_in_one_folder, write_cub, write_inshop, write_pictures, write_sop

import orthoproxy
from orthoproxy.cli.main import parse
from orthoproxy.cli.options import config_overrides
from orthoproxy.runs.recipes import read_config

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


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
    assert [name for name in run.scores["model"] if name.startswith("recall@")] == [
        f"recall@{k}" for k in config.evaluation.recall_at
    ]
    assert ("category_recall@1" in run.scores["model"]) == (recipe.stem == "sop")
    assert any("bounding boxes" in note for note in run.scores["notes"]) == (recipe.stem == "cub")
    assert run.scores["selected_on"] == config.checkpoint_selection.split
    model = run.load_model()
    assert model.proxies.shape == (len(model.classes), config.encoder.embedding_dim)
