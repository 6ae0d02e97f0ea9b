"""The folder that a run leaves, and how it is opened."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from orthoproxy.config import Config, flat
from orthoproxy.embedder import Embedder
from orthoproxy.environment import environment
from orthoproxy.errors import InputError
from orthoproxy.recipes import read_config, write_config

# options that do not change what a run computes
WITHOUT_EFFECT = {"data.workers", "evaluation.memory_mb"}


class Run:
    """A run folder: where training leaves its model, scores and report.

    Parameters
    ----------
    folder
        ``runs/NAME``.

    Examples
    --------
    >>> Run("runs/nowhere").finished
    False
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.report = self.folder / "report.html"
        self.metrics = self.folder / "metrics.jsonl"
        self.checkpoints = self.folder / "checkpoints"

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return (self.folder / "config.yaml").is_file()

    @property
    def has_state(self) -> bool:
        """Whether there is anything to go on from, or to lose."""
        return self.exists and (self.finished or (self.checkpoints / "last.ckpt").is_file())

    @property
    def finished(self) -> bool:
        """Whether training, evaluation and report are done."""
        return self.report.is_file()

    @cached_property
    def config(self) -> Config:
        """The configuration that the run was made with.

        Raises
        ------
        InputError
            If the folder holds no run.
        """
        if not self.exists:
            raise InputError(f"no run in {self.folder}: config.yaml is not there")
        return read_config(self.folder / "config.yaml")

    @property
    def model(self) -> Embedder:
        """The trained model."""
        return Embedder.load(self.folder)

    @property
    def scores(self) -> dict[str, Any] | None:
        """The scores on the test classes, as evaluation.json holds them; None where there were no test classes."""
        path = self.folder / "evaluation.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def check(self, config: Config, resume: bool) -> None:
        """Make sure that a run can start here, or go on.

        Parameters
        ----------
        config
            Of the run.
        resume
            Whether a run that is there already is to go on.

        Raises
        ------
        InputError
            If there is a run and `resume` is false, or the run was made with another configuration.
        """
        if self.folder.is_file():
            raise InputError(f"--out: {self.folder} is a file; give a folder")
        if not self.has_state:
            return
        if not resume:
            raise InputError(
                f"{self.folder} holds a run already; resume it with --resume, or give another folder with --out"
            )
        before, now = flat(self.config), flat(config)
        changed = [name for name in now if now[name] != before[name] and name not in WITHOUT_EFFECT]
        if changed:
            raise InputError(
                f"{changed[0]}: {self.folder} was started with {before[changed[0]]!r}, not {now[changed[0]]!r}; "
                "resume with the same configuration, or give another folder with --out"
            )

    def start(self, config: Config) -> None:
        """Make the folder, with the configuration, versions and machine; what a failed start left is removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        self.metrics.unlink(missing_ok=True)
        write_config(replace(config, environment=environment()), self.folder / "config.yaml")

    def log(self, record: dict[str, Any]) -> None:
        """Append a record to metrics.jsonl."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def records(self) -> pd.DataFrame:
        """Return metrics.jsonl as a table, one row a record."""
        lines = self.metrics.read_text().splitlines() if self.metrics.is_file() else []
        return pd.DataFrame([json.loads(line) for line in lines])

    def drop_records_after(self, step: int) -> None:
        """Forget records of steps that a checkpoint does not know, since resuming takes these steps again."""
        lines = self.metrics.read_text().splitlines(keepends=True) if self.metrics.is_file() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        self.metrics.write_text("".join(kept))
