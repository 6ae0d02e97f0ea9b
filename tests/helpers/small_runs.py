"""Small runs in processes of their own, in which something can be done to them at a step."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from orthoproxy.cli.main import main
from orthoproxy.data import select_split
from orthoproxy.runs.build import split_table
from orthoproxy.runs.reproduce import without_seconds
from orthoproxy.runs.run_folder import Run

RECIPE = """
data: {name: folder, test_fraction: 0.4, validation_fraction: 0.34, workers: 1, resize: 32}
encoder: {name: test_vit, weights: none, embedding_dim: 8, image_size: 32}
training: {epochs: 3, batch_size: 4, log_every: 1, precision: 32-true}
evaluation: {recall_at: [1, 2], draws: 20}
"""
STEPS_AN_EPOCH = 5  # and a validation after each


def make_photos(root: Path) -> None:
    """Ten classes of five images, each class in shades of a colour of its own."""
    generator = np.random.default_rng(0)
    for number in range(10):
        (root / f"class {number}").mkdir(parents=True)
        colour = generator.integers(60, 256, size=3)
        for copy in range(5):
            pixels = colour + generator.integers(-40, 40, size=(36, 40, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(root / f"class {number}" / f"{copy}.png")


def training(recipe: Path, root: Path, out: Path, *more: object) -> list[str]:
    return ["train", "--config", str(recipe), "--data.root", str(root), "--out", str(out), *map(str, more)]


def trained_on(out: Path) -> list[Path]:
    """The images that a run learns from."""
    return [Path(path) for path in select_split(split_table(Run(out).config), "train")["path"]]


class Started:
    """A verb of the command line in a process of its own, forked so that it need not import anything.

    `at_step` is called in it right after the record of `step` was written.
    """

    def __init__(
        self,
        arguments: list[str],
        errors: Path,
        step: int | None = None,
        at_step: Callable[[Run], Any] | None = None,
        first: Callable[[], Any] | None = None,
    ) -> None:
        self.errors = errors
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=_work, args=(arguments, errors, step, at_step, first))
        with warnings.catch_warnings(action="ignore"):  # newer Pythons warn of forking beside threads
            self.process.start()
        self.pid = self.process.pid or 0

    def end(self, seconds: float = 120) -> tuple[int, str]:
        """Its exit code, a signal's as a shell has it, and what it wrote to standard error."""
        self.process.join(seconds)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            self.process.join()
        text = self.errors.read_text()
        assert code is not None, f"it did not end\n{text}"
        return code if code >= 0 else 128 - code, text


def _work(arguments: list[str], errors: Path, step: int | None, at_step: Any, first: Any) -> None:
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = errors.open("w", buffering=1)
    log = Run.log

    def log_and_act(run: Run, record: dict) -> None:
        log(run, record)
        if record["step"] == step and "loss" in record:
            at_step(run)

    if step is not None:
        Run.log = log_and_act
    if first is not None:
        first()
    try:
        code = main(arguments)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.exit(code)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def lines_of(error: str) -> list[str]:
    """The message that a verb ended with."""
    assert "Traceback" not in error, error
    return error[error.index("orthoproxy: ") :].strip().splitlines()


def saved_step(out: Path) -> int:
    return torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["position"]["step"]


def difference(out: Path, whole: Path, judged: bool = True) -> str:
    """What is lost of a run, beside one that nothing happened to; the scores are left out where it is not judged."""
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (out, whole)]
    if weights[0] != weights[1]:
        return "the weights differ"
    records = [Run(folder).records().drop(columns=["seconds", "images_per_second"]) for folder in (out, whole)]
    if not records[0].equals(records[1]):
        return "the metrics differ"
    scores = [without_seconds(Run(folder).scores) for folder in (out, whole)]
    if judged and scores[0] != scores[1]:
        return "the scores differ"
    return "half a file" if list(out.rglob("*.tmp")) else "nothing"


def mount(*arguments: object) -> bool:
    try:
        return subprocess.run(["mount", *map(str, arguments)], capture_output=True).returncode == 0
    except OSError:
        return False


@contextmanager
def disk(folder: Path, size: str) -> Iterator[bool]:
    """A file system of its own; false where this user may not mount one."""
    folder.mkdir()
    if not mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder):
        yield False
        return
    yield True
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # tensors may still be mapped into memory
