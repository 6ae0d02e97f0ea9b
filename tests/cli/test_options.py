"""Options: what they parse to, which are rejected, and that --help loads no heavy library."""

import math
from importlib.metadata import version
from typing import Any

import pytest
from command_line import loaded_by
from errors import error_of, input_error

from orthoproxy.cli.main import COMMANDS, main, parse
from orthoproxy.cli.options import config_overrides
from orthoproxy.evaluation import Scoring
from orthoproxy.runs.recipes import read_config


def overrides(*arguments: str) -> dict[str, Any]:
    return config_overrides(parse(["train", "--out", "x", *arguments])[1])


@pytest.mark.parametrize(("key", "text", "value"), [
    ("training.epochs", "3", 3), ("optimizer.lr.backbone", "1e-4", 1e-4), ("training.deterministic", "true", True),
    ("encoder.embedding_dim", "null", None), ("evaluation.recall_at", "[1, 10]", [1, 10]),
    ("data.resize", "stretch", "stretch"), ("data.root", "2024", "2024"), ("data.root", "null", None),
    ("encoder.init_from", "none", "none"), ("loss.args", '{"margin": 0.2}', {"margin": 0.2}),
    ("loss.args.scale", "32", 32), ("loss.miner.args.type_of_triplets", "hard", "hard"),
])  # fmt: skip
def test_values_are_yaml_except_where_a_string_is_wanted(key: str, text: str, value: Any) -> None:
    assert overrides(f"--{key}={text}") == overrides(f"--{key}", text) == {key: value}


@pytest.mark.parametrize(("images", "expected"), [
    ("cub", {"data.name": "cub"}), ("./cub", {"data.name": "folder", "data.root": "./cub"}),
    ("photos", {"data.name": "folder", "data.root": "photos"}),
    ("lists/all.csv", {"data.name": "csv", "data.csv": "lists/all.csv"}),
])  # fmt: skip
def test_images_are_a_dataset_a_folder_or_a_csv_file(images: str, expected: dict[str, str]) -> None:
    assert overrides(images) == expected
    short = overrides("--workers", "2", images, "--device", "cpu")  # in any order
    assert short == expected | {"data.workers": 2, "training.device": "cpu"}


@pytest.mark.parametrize(("arguments", "field", "hint"), [
    (["train", "--out", "x", "--training.epoch", "3"], "--training.epoch", "--training.epochs"),
    (["train", "--out", "x", "--loss.margin", "3"], "--loss.margin", ""),
    (["evaluate", "x", "--device", "gpu"], "--device", ""), (["evaluate", "x", "--workers", "-1"], "--workers", ""),
    (["embed", "x", "y", "--out", "z", "--batch-size", "0"], "--batch-size", ""),
    (["diagnose", "x", "--split", "train"], "--split", ""), (["data", "verfy", "cub"], "action", ""),
    (["serach"], None, "search?"), (["reproduce", "x"], None, "compare"),
    (["search", "x", "y.png", "--min-similarity", "1.5"], "--min-similarity", ""),
    # options of training
    (["evaluate", "x", "--data.resize", "squash"], "--data.resize", "orthoproxy train"),
    (["embed", "x", "y", "--out", "z", "--encoder.image_size=64"], "--encoder.image_size", "orthoproxy train"),
    (["diagnose", "x", "--loss.args.margin", "1"], "--loss.args.margin", "orthoproxy train"),
    (["evaluate", "x", "--evaluation.draws", "0"], "--evaluation.draws", "evaluation.bootstrap_samples"),
])  # fmt: skip
def test_what_does_not_exist_or_does_not_parse_is_named(arguments: list[str], field: str | None, hint: str) -> None:
    error = error_of(parse, arguments)
    assert error.field == field and hint in str(error.hint)


@pytest.mark.parametrize(("recipe", "arguments", "field"), [
    ("", ["--data.test_classes", "[001, 010]"], "data.test_classes"), ("data: {root: 2024}", [], "data.root"),
    ("data: {csv: no}", [], "data.csv"), ("encoder: {name: 2024-01-02}", [], "encoder.name"),
])  # fmt: skip
def test_text_that_yaml_reads_as_something_else_belongs_in_quotes(recipe: str, arguments, field: str, tmp_path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe)
    error = input_error(["train", "--config", tmp_path / "recipe.yaml", "--out", tmp_path / "x", *arguments])
    assert error.field == field and "quotes" in str(error.hint)
    (tmp_path / "recipe.yaml").write_text("data: {root: '2024', test_classes: ['001', '010']}")
    assert read_config(tmp_path / "recipe.yaml").data.test_classes == ["001", "010"]


@pytest.mark.parametrize(("key", "value"), [
    ("recall_at", [0]), ("recall_at", []), ("recall_at", [2**31]), ("bootstrap_samples", 0), ("confidence", 95),
    ("confidence", math.nan), ("block_memory_mb", 0), ("block_memory_mb", math.inf),
])  # fmt: skip
def test_an_evaluation_protocol_out_of_range_is_an_error_before_any_work(key: str, value: Any) -> None:
    assert error_of(Scoring, **{key: tuple(value) if isinstance(value, list) else value}).field == key
    error = input_error(["evaluate", "nowhere", "nowhere-else", f"--evaluation.{key}", value])
    assert str(error.field).startswith(f"evaluation.{key}")


def test_an_option_of_version_01_is_answered_with_the_new_one_and_its_values() -> None:
    error = error_of(parse, ["diagnose", "x", "--on", "train"])
    assert (error.field, error.expected) == ("--on", "--split, one of validation, test")
    for old, new in {"--plan": "--dry-run", "--part=2/8": "--shard", "--part": "--shard"}.items():
        error = error_of(parse, ["study", "x.yaml", old])
        assert (error.field, error.expected) == (old, new)


EXPORT = ["export", "x", "--out", "model.pt"]  # not .onnx


@pytest.mark.parametrize("arguments", [["train"], ["embed", "x"], ["compare", "x"], ["search"], EXPORT])
def test_what_is_missing_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("orthoproxy: ") and error.count("\n") == 1


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"orthoproxy {version('orthoproxy')}\n"


HEAVY = ("torch", "numpy", "pandas", "timm", "PIL", "matplotlib", "rich", "lightning_fabric", "sklearn")


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_loads_no_heavy_library(command: str | None) -> None:
    printed, modules = loaded_by([*([command] if command else []), "--help"])
    assert "usage: orthoproxy" in printed and not modules & {*HEAVY}
