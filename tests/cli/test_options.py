"""Options: what they parse to, which are rejected, and that --help loads no heavy library."""

import subprocess
import sys
from importlib.metadata import version
from typing import Any

import pytest

from orthoproxy.cli.main import COMMANDS, main, parse
from orthoproxy.cli.options import config_overrides
from orthoproxy.core.errors import InputError


def overrides(*arguments: str) -> dict[str, Any]:
    return config_overrides(parse(["train", "--out", "x", *arguments])[1])


@pytest.mark.parametrize(("key", "text", "value"), [
    ("training.epochs", "3", 3), ("optimizer.lr.backbone", "1e-4", 1e-4), ("training.deterministic", "true", True),
    ("encoder.embedding_dim", "null", None), ("evaluation.recall_at", "[1, 10]", [1, 10]),
    ("data.resize", "stretch", "stretch"), ("data.root", "2024", "2024"), ("data.root", "null", None),
    ("encoder.init_from", "none", "none"), ("loss.args", '{"margin": 0.2}', {"margin": 0.2}),
    ("loss.args.scale", "32", 32), ("loss.miner.args.type_of_triplets", "hard", "hard"),
])  # fmt: skip
@pytest.mark.parametrize("joined", [False, True])
def test_values_are_yaml_except_where_a_string_is_wanted(key: str, text: str, value: Any, joined: bool) -> None:
    arguments = [f"--{key}={text}"] if joined else [f"--{key}", text]
    assert overrides(*arguments) == {key: value}


@pytest.mark.parametrize(("images", "expected"), [
    ("cub", {"data.name": "cub"}), ("./cub", {"data.name": "folder", "data.root": "./cub"}),
    ("photos", {"data.name": "folder", "data.root": "photos"}),
    ("lists/all.csv", {"data.name": "csv", "data.csv": "lists/all.csv"}),
])  # fmt: skip
def test_images_are_a_dataset_a_folder_or_a_csv_file(images: str, expected: dict[str, str]) -> None:
    assert overrides(images) == expected
    short = overrides("--workers", "2", images, "--device", "cpu")  # in any order
    assert short == expected | {"data.workers": 2, "training.device": "cpu"}


@pytest.mark.parametrize(("arguments", "field"), [
    (["train", "--out", "x", "--training.epoch", "3"], "--training.epoch"),
    (["train", "--out", "x", "--loss.margin", "3"], "--loss.margin"),
    (["evaluate", "x", "--device", "gpu"], "--device"), (["evaluate", "x", "--workers", "-1"], "--workers"),
    (["embed", "x", "y", "--out", "z", "--batch-size", "0"], "--batch-size"),
    (["diagnose", "x", "--split", "train"], "--split"), (["search", "x", "y.png", "-k", "many"], "-k"),
    (["search", "x", "y.png", "--min-similarity", "1.5"], "--min-similarity"),
    (["data", "describe", "x", "--data.rot", "x"], "--data.rot"), (["data", "verfy", "cub"], "action"),
])  # fmt: skip
def test_options_that_do_not_exist_or_do_not_parse_are_named(arguments: list[str], field: str) -> None:
    with pytest.raises(InputError) as error:
        parse(arguments)
    assert error.value.field == field
    assert field != "--training.epoch" or "--training.epochs" in str(error.value.hint)


def test_an_option_of_version_01_is_answered_with_the_new_one_and_its_values() -> None:
    with pytest.raises(InputError) as error:
        parse(["diagnose", "x", "--on", "train"])
    assert (error.value.field, error.value.expected) == ("--on", "--split, one of validation, test")


EXPORT = ["export", "x", "--out", "model.pt"]  # not .onnx


@pytest.mark.parametrize("arguments", [["train"], ["embed", "x"], ["compare", "x"], ["search"], ["trian"], EXPORT])
def test_what_is_missing_or_unknown_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("orthoproxy: ") and error.count("\n") == 1


def test_the_version_and_a_hint_for_a_mistyped_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"orthoproxy {version('orthoproxy')}\n"
    assert main(["serach"]) == 2
    assert "search?" in capsys.readouterr().err


HEAVY = ("torch", "numpy", "pandas", "timm", "PIL", "matplotlib", "rich", "lightning_fabric", "sklearn")
HELP = """
import contextlib, io, sys
from orthoproxy.cli.main import main
with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
    main(sys.argv[1:])
assert "usage: orthoproxy" in out.getvalue()
print(*sys.modules)
"""


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_loads_no_heavy_library(command: str | None) -> None:
    arguments = [*([command] if command else []), "--help"]
    done = subprocess.run([sys.executable, "-c", HELP, *arguments], capture_output=True, text=True, check=True)
    assert not {name.partition(".")[0] for name in done.stdout.split()} & {*HEAVY}
