"""The folder that a run leaves, and how it is opened."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from orthoproxy.core.environment import DATA, environment, file_versions, fingerprint
from orthoproxy.core.errors import InputError
from orthoproxy.core.files import atomic_write, flush
from orthoproxy.core.safe_parsing import parse_json
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.runs.config import Config, flat
from orthoproxy.runs.recipes import read_config, write_config
from orthoproxy.training import has_checkpoint

# options that do not change what a run computes
WITHOUT_EFFECT = {"data.workers", "evaluation.memory_mb"}
# what a run makes besides config.yaml, which comes first
MADE = ("skipped.csv", "checkpoints", "metrics.jsonl", "baseline", "model", "evaluation.json", "report.html")


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
        self.skipped = self.folder / "skipped.csv"
        self.checkpoints = self.folder / "checkpoints"

    @classmethod
    def of(cls, place: str | Path) -> Run | None:
        """Find the run that a folder is, or that a model folder belongs to.

        Parameters
        ----------
        place
            A run folder or its model folder; anything else, such as a name on the hub, is of no run.

        Examples
        --------
        >>> Run.of("runs/nowhere/model") is None
        True
        """
        runs = (cls(folder) for folder in (Path(place), Path(place).resolve().parent))
        return next((run for run in runs if run.exists), None)

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return (self.folder / "config.yaml").is_file()

    @property
    def has_state(self) -> bool:
        """Whether there is anything to go on from, or to lose."""
        return self.exists and (self.finished or self.trained or has_checkpoint(self.checkpoints))

    @property
    def trained(self) -> bool:
        """Whether the model is there, whole."""
        return (self.folder / "model" / "config.json").is_file()

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
        try:
            return parse_json(path.read_text(encoding="utf-8")) if path.is_file() else None
        except ValueError as error:
            raise InputError(f"{path}: damaged; write it anew with: orthoproxy report {self.folder}") from error

    @property
    def unreadable(self) -> pd.DataFrame | None:
        """The images left out, as from `data.find_unreadable`; None with data.on_error raise."""
        return pd.read_csv(self.skipped, dtype=str, keep_default_na=False) if self.skipped.is_file() else None

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
            self._require_own()
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

    def _require_own(self) -> None:
        """A start overwrites what a failed start left, never what somebody else did."""
        theirs = [name for name in MADE if (self.folder / name).exists()]
        if theirs and not self.exists:
            raise InputError(f"--out: {self.folder} holds {theirs[0]}, but no run; give another folder")
        if self.exists:
            try:
                read_config(self.folder / "config.yaml")
            except InputError as error:
                raise InputError(f"{error}\n--out: {self.folder} is of something else; give another folder") from error

    def start(self, config: Config, images: pd.DataFrame, unreadable: pd.DataFrame | None = None) -> None:
        """Make the folder, with the configuration, versions and machine; what a failed start left is removed.

        Parameters
        ----------
        config
            Of the run.
        images
            All that it uses.
        unreadable
            The images that it leaves out; None with data.on_error raise.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        self.metrics.unlink(missing_ok=True)
        self.skipped.unlink(missing_ok=True)
        told = {**environment(), DATA: fingerprint(images, file_versions(images["path"].tolist()))}
        write_config(replace(config, environment=told), self.folder / "config.yaml")
        if unreadable is not None:
            atomic_write(self.skipped, unreadable.to_csv(index=False))

    def log(self, record: dict[str, Any]) -> None:
        """Append a record to metrics.jsonl, and wait until the disk has it: a checkpoint may count on it."""
        line = json.dumps(record).encode() + b"\n"
        with self.metrics.open("ab") as file:
            file.write(line)
            flush(file)

    def records(self) -> pd.DataFrame:
        """Return metrics.jsonl as a table, one row a record."""
        return pd.DataFrame([record for _, record in self._lines()])

    def drop_records_after(self, step: int) -> None:
        """Forget records of steps that a checkpoint does not know, since resuming takes these steps again."""
        atomic_write(self.metrics, "".join(line for line, record in self._lines() if record["step"] <= step))

    def _lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each line of metrics.jsonl and its record, without what a full disk or a power cut left in pieces."""
        text = self.metrics.read_text(encoding="utf-8", errors="replace") if self.metrics.is_file() else ""
        for line in text.split("\n")[:-1]:
            with suppress(ValueError):
                yield f"{line}\n", parse_json(line)
