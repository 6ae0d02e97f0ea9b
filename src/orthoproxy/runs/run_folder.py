"""The folder that a run writes."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from orthoproxy.core.distributed import is_main, raise_together
from orthoproxy.core.errors import InputError
from orthoproxy.core.files import atomic_write, flush
from orthoproxy.core.folder_lock import folder_lock
from orthoproxy.core.safe_parsing import parse_json
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.runs.config import Config
from orthoproxy.runs.recipes import read_config, write_config
from orthoproxy.training.checkpoint import has_checkpoint

# options that do not change what a run computes
WITHOUT_EFFECT = {"data.workers", "evaluation.block_memory_mb"}
UNREADABLE = "unreadable_images.csv"
# what a run writes after config.yaml
WRITTEN = (UNREADABLE, "checkpoints", "metrics.jsonl", "baseline", "model", "evaluation.json", "report.html")


class RunFolder:
    """A run folder: configuration, metrics, checkpoints, model, scores and report of a training run.

    Parameters
    ----------
    folder
        For example ``runs/birds``.
    overrides
        Values of the configuration that hold now, by dotted key: of moved images, ``{"data.root": "birds"}``.

    Attributes
    ----------
    report, metrics, checkpoints
        Paths of report.html, metrics.jsonl and the checkpoints.

    Examples
    --------
    >>> RunFolder("runs/nowhere").exists
    False
    """

    def __init__(self, folder: str | Path, overrides: Mapping[str, Any] | None = None) -> None:
        self.folder, self.overrides = Path(folder), overrides or {}
        self.report = self.folder / "report.html"
        self.metrics = self.folder / "metrics.jsonl"
        self.checkpoints = self.folder / "checkpoints"
        self.baseline = self.folder / "baseline"

    @classmethod
    def find(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> RunFolder | None:
        """Return the run whose folder, or whose model folder, `path` is; None for anything else."""
        folder = Path(path).resolve()
        run = cls(folder.parent if folder.name == "model" and not cls(folder).exists else Path(path), overrides)
        return run if run.exists else None

    @contextmanager
    def open(self, config: Config, resume: bool) -> Iterator[RunFolder]:
        """Lock the folder for a training run, after checking that the run can start or continue."""
        with folder_lock(self.folder, "out"):
            with raise_together():
                if is_main():
                    self._check(config, resume)
            yield self

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return (self.folder / "config.yaml").is_file()

    @property
    def has_state(self) -> bool:
        """Whether there is anything to resume from, or to lose."""
        return self.exists and (self.has_report or self.has_model or has_checkpoint(self.checkpoints))

    @property
    def has_model(self) -> bool:
        """Whether training is complete."""
        return (self.folder / "model" / "config.json").is_file()

    @property
    def has_report(self) -> bool:
        """Whether evaluation is complete."""
        return self.report.is_file()

    @cached_property
    def config(self) -> Config:
        """The configuration of the run; raises `InputError` if the folder holds none."""
        if not self.exists:
            raise InputError("no run: config.yaml is missing", path=self.folder)
        if (self.folder / "untrained").is_dir():
            problem = "a run of version 0.1: its baseline is in untrained/"
            raise InputError(problem, path=self.folder, hint="train it again")
        return read_config(self.folder / "config.yaml")

    @property
    def current_config(self) -> Config:
        """The configuration with the overrides, as where the images are now, and absolute paths."""
        return self.config.with_overrides(self.overrides).with_absolute_paths()

    @property
    def scores(self) -> dict[str, Any] | None:
        """The content of evaluation.json; None if there were no test classes, or the run was not evaluated."""
        path = self.folder / "evaluation.json"
        try:
            return parse_json(path.read_text(encoding="utf-8")) if path.is_file() else None
        except ValueError as error:
            raise InputError("damaged", path=path, hint=f"run: orthoproxy report {self.folder}") from error

    @property
    def unreadable(self) -> pd.DataFrame | None:
        """The images left out because they cannot be read; None unless data.on_unreadable_image is skip."""
        path = self.folder / UNREADABLE
        return pd.read_csv(path, dtype=str, keep_default_na=False) if path.is_file() else None

    def load_model(self, device: Any = "cpu", with_proxies: bool = True) -> Embedder:
        """Load the trained model."""
        return Embedder.load(self.folder, device, with_proxies=with_proxies)

    def _check(self, config: Config, resume: bool) -> None:
        found = [name for name in WRITTEN if (self.folder / name).exists()]
        if found and not self.exists:  # a start overwrites what a failed start left, never anything else
            problem = f"holds {found[0]} but no run"
            raise InputError(problem, field="out", path=self.folder, hint="choose another folder")
        if self.has_state and not resume:
            hint = "use --resume, or choose another folder"
            raise InputError("holds a run already", field="out", path=self.folder, hint=hint)
        if not self.exists:
            return
        before, now = self.config.flatten(), config.flatten()
        changed = [key for key in now if now[key] != before[key] and key not in WITHOUT_EFFECT]
        if changed and self.has_state:
            problem = f"the run was started with {before[changed[0]]!r}, not {now[changed[0]]!r}"
            hint = "resume with the same configuration, or choose another folder"
            raise InputError(problem, field=changed[0], path=self.folder, hint=hint)

    def start(self, config: Config, environment: Mapping[str, str], unreadable: pd.DataFrame | None) -> None:
        """Create the folder with config.yaml and unreadable_images.csv, after removing what a failed start left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        self.metrics.unlink(missing_ok=True)
        (self.folder / UNREADABLE).unlink(missing_ok=True)
        write_config(config.model_copy(update={"environment": dict(environment)}), self.folder / "config.yaml")
        self.__dict__.pop("config", None)
        if unreadable is not None:
            atomic_write(self.folder / UNREADABLE, unreadable.to_csv(index=False))

    def require_shared(self) -> None:
        """Raise `InputError` in all processes if one does not see the folder that the main process created."""
        with raise_together():
            if not self.exists:
                problem, hint = f"not visible on {socket.gethostname()}", "choose a folder that all machines share"
                raise InputError(problem, field="out", path=self.folder.resolve(), hint=hint)

    def log(self, record: dict[str, Any]) -> None:
        """Append a record to metrics.jsonl and wait until it is on disk: a checkpoint may rely on it."""
        with self.metrics.open("ab") as file:
            file.write(json.dumps(record).encode() + b"\n")
            flush(file)

    def records(self) -> pd.DataFrame:
        """Return metrics.jsonl as a table with one row per record."""
        return pd.DataFrame([record for _, record in self._lines()])

    def drop_records_after(self, step: int) -> None:
        """Remove the records of steps after a checkpoint, which are trained again."""
        atomic_write(self.metrics, "".join(line for line, record in self._lines() if record["step"] <= step))

    def _lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the lines of metrics.jsonl with their records, without lines that a crash left incomplete."""
        text = self.metrics.read_text(encoding="utf-8", errors="replace") if self.metrics.is_file() else ""
        for line in text.split("\n")[:-1]:
            with suppress(ValueError):
                yield f"{line}\n", parse_json(line)
