"""Recipes load, say what they cost and reach, and go through the parser unchanged."""

from pathlib import Path

import pytest

from orthoproxy.runs.config import Config, flat
from orthoproxy.core.errors import InputError
from orthoproxy.runs.recipes import read_config, write_config

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_its_header_tells_command_cost_and_score(path):
    config = read_config(path)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for entry in ("command", "cost", "score"):
        assert any(line.split()[1:2] == [entry] for line in header), entry
    assert f"--config recipes/{path.name}" in "\n".join(header)
    assert flat(config) != flat(Config())


def test_a_configuration_survives_being_written(tmp_path):
    config = read_config(RECIPES[0], ["--loss.args.margin", "0.2", "--encoder.embedding_dim", "null"])
    assert config.loss.args == {"margin": 0.2} and config.encoder.embedding_dim is None
    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config


def test_options_override_the_recipe():
    assert read_config(RECIPES[0], ["--training.epochs", "3"]).training.epochs == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {epoch: 3}", "did you mean training.epochs"),
        ("training: {epochs: three}", "training.epochs"),
        ("training: {epochs: 3", "YAML|parsing"),
        ("trainning: {epochs: 3}", "trainning"),
        ("- 1", "config"),
    ],
)
def test_a_typo_is_named(tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_config(tmp_path / "recipe.yaml")
