"""Small runs, some of them in processes of their own."""

import multiprocessing
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import ArrayLike
from PIL import Image

from orthoproxy.cli.main import main
from orthoproxy.data.table import select_split
from orthoproxy.runs.config import Config
from orthoproxy.runs.dataset import split_table
from orthoproxy.runs.run_folder import RunFolder

RECIPE = """
data: {name: folder, test_fraction: 0.4, validation_fraction: 0.34, workers: 1, resize: 32}
sampler: {batch_size: 4}
encoder: {name: test_vit, init_from: none, embedding_dim: 8, image_size: 32}
training: {epochs: 3, log_every_n_steps: 1, precision: 32-true}
evaluation: {recall_at: [1, 2], bootstrap_samples: 20}
"""
STEPS_PER_EPOCH = 5  # and a validation after each


def write_shades(folder: Path, color: ArrayLike, each: int, generator: np.random.Generator, spread: int = 20) -> None:
    """Images of 40 x 36 pixels in shades of a color."""
    folder.mkdir(parents=True)
    for number in range(each):
        pixels = np.array(color) + generator.integers(-spread, spread, size=(36, 40, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")


def make_config(root: Path, overrides: Mapping[str, object] = {}) -> Config:
    """The recipe for the images in a folder, read without workers."""
    values = yaml.safe_load(RECIPE) | {"data.root": str(root), "data.workers": 0}
    return Config().with_overrides(values | overrides)


def training(recipe: Path, root: Path, out: Path, *more: object) -> list[str]:
    return ["train", "--config", str(recipe), "--data.root", str(root), "--out", str(out), *map(str, more)]


def training_images(out: Path) -> list[Path]:
    return [Path(path) for path in select_split(split_table(RunFolder(out).config), "train")["path"]]


class Started:
    """A command in a forked process, with a function to call there first."""

    def __init__(self, arguments: list[str], errors: Path, first: Callable[[], Any] = lambda: None) -> None:
        self.errors = errors
        self.process = multiprocessing.get_context("fork").Process(target=_work, args=(arguments, errors, first))
        with warnings.catch_warnings(action="ignore"):  # newer Pythons warn of forking beside threads
            self.process.start()
        self.pid = self.process.pid or 0

    def end(self, seconds: float = 300) -> tuple[int, str]:
        """Its exit code, a signal's as a shell has it, and what it wrote to standard error."""
        self.process.join(seconds)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            self.process.join()
        text = self.errors.read_text()
        assert code is not None, f"it did not end\n{text}"
        return code if code >= 0 else 128 - code, text


def _work(arguments: list[str], errors: Path, first: Callable[[], Any]) -> None:
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = errors.open("w", buffering=1)
    first()
    try:
        code = main(arguments)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.exit(code)


@dataclass
class Run:
    """A run to which something happens, in a folder of its own."""

    recipe: Path
    photos: Path
    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "run"

    def words(self, *more: object) -> list[str]:
        return training(self.recipe, self.photos, self.out, *more)

    def start(self, first: Callable[[], Any], *more: object) -> Started:
        return Started(self.words(*more), self.folder / "errors", first)

    def resumes_to(self, whole: Path) -> bool:
        """Resume; return whether it comes to the same bits as a run that nothing happened to."""
        return main(self.words("--resume")) == 0 and not difference(self.out, whole)


def saved_step(out: Path) -> int:
    return torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state"]["step"]


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, but for its lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def without_seconds(scores: Any) -> Any:
    """The scores without how long they took."""
    if not isinstance(scores, dict):
        return scores
    return {name: without_seconds(value) for name, value in scores.items() if name != "seconds"}


def difference(out: Path, whole: Path) -> str:
    """In what a run differs from another that nothing happened to; empty if in nothing."""
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (out, whole)]
    records = [RunFolder(folder).records().drop(columns=["seconds", "images_per_second"]) for folder in (out, whole)]
    scores = [without_seconds(RunFolder(folder).scores) for folder in (out, whole)]
    differs = {"weights": weights[0] != weights[1], "metrics": not records[0].equals(records[1])}
    differs |= {"scores": scores[0] != scores[1], "half a file": bool(list(out.rglob("*.tmp")))}
    return ", ".join(name for name, found in differs.items() if found)
