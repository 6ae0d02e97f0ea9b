"""Files of a small run, and the results or the error of a command."""

import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from orthoproxy.cli.main import main, parse
from orthoproxy.core.errors import InputError

RECIPE = """
data: {workers: 0, resize: 32, test_fraction: 0.5, validation_fraction: 0.0}
encoder: {name: test_vit, init_from: none, embedding_dim: 8, image_size: 32}
sampler: {batch_size: 4}
training: {epochs: 1, precision: 32-true}
evaluation: {recall_at: [1, 2], bootstrap_samples: 20}
"""


class Files(NamedTuple):
    folder: Path
    recipe: Path
    training: Path  # CSV files
    unseen: Path


def make_files(folder: Path) -> Files:
    """Write a recipe, and two CSV files with three images per color."""
    files = Files(folder, folder / "recipe.yaml", folder / "train.csv", folder / "unseen.csv")
    files.recipe.write_text(RECIPE)
    for path, colors in ((files.training, ["red", "green", "blue", "gold"]), (files.unseen, ["pink", "navy"])):
        rows = ["path,label"]
        for color in colors:
            for shade in range(3):
                name = f"{path.stem}-{color}-{shade}.png"
                Image.new("RGB", (32 + 4 * shade, 32), color).save(folder / name)
                rows.append(f"{name},{color}")
        path.write_text("\n".join(rows) + "\n")
    return files


def train_arguments(files: Files, out: Path, *more: object) -> list[str]:
    return ["train", str(files.training), "--config", str(files.recipe), "--out", str(out), *map(str, more)]


def json_of(arguments: Sequence[object], code: int = 0) -> Any:
    """Run a command that must end with an exit code; return the results that it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "new" / "results.json"
        assert main([*map(str, arguments), "--json", str(out)]) == code
        return json.loads(out.read_text(encoding="utf-8"))


INTERRUPTED = """
import os, runpy, signal, sys
module, *sys.argv = sys.argv[1:]
signal.signal(signal.SIGINT, signal.default_int_handler)
interrupt = lambda event, args: os.killpg(0, signal.SIGINT) if event == "import" and args[0] == module else None
sys.addaudithook(interrupt)
runpy.run_module("orthoproxy", run_name="__main__")"""


def interrupted_at(module: str, arguments: Sequence[str]) -> tuple[int, str, str]:
    """Press Ctrl-C when a command imports a module; return its exit code and what it printed."""
    command = [sys.executable, "-c", INTERRUPTED, module, "orthoproxy", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, start_new_session=True)
    return done.returncode, done.stdout, done.stderr


def input_error(arguments: Sequence[object]) -> InputError:
    """Run a command and return the error that `main` would print."""
    with pytest.raises(InputError) as caught:
        importlib.import_module(f"orthoproxy.cli.{arguments[0]}").run(parse([*map(str, arguments)])[1])
    return caught.value
