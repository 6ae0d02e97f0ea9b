"""Checkpoints: everything that a run needs to continue as if it had never stopped."""

from __future__ import annotations

import errno
import os
import pickle
import random
import sys
import zipfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from orthoproxy.core.distributed import gather_objects, is_main, process_count, process_index, raise_together
from orthoproxy.core.errors import InputError
from orthoproxy.core.files import atomic_write
from orthoproxy.losses import ProxyAnchorLoss
from orthoproxy.training.checkpoint_shards import CheckpointShards

FORMAT_VERSION = 2


class _DamagedError(InputError):
    """A checkpoint is missing, or not as it was written."""


def has_checkpoint(folder: Path) -> bool:
    """Whether a run can be resumed from the folder."""
    return any((folder / f"{name}.ckpt").is_file() for name in ("last", "previous"))


@dataclass
class TrainingState:
    """Progress of a training run: optimizer steps taken, the next batch to train on, and the best validation score."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best_score: float = -1.0
    best_epoch: int = 0
    validations_since_best: int = 0
    seconds: float = 0.0


class Checkpoints:
    """The checkpoints of a run: ``last.ckpt``, the one before it as ``previous.ckpt``, and ``best.ckpt``.

    Written atomically, read with ``weights_only=True`` after their checksums were verified. Learning rates follow from
    the step and batches from the seed, so neither scheduler nor sampler is saved.
    """

    def __init__(
        self,
        folder: Path,
        encoder: nn.Module,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device | None = None,
    ) -> None:
        self.folder, self.encoder, self.objective, self.optimizer = folder, encoder, objective, optimizer
        self.device = device or torch.device("cpu")
        self.saved_step = 0  # of last.ckpt
        sharded = [x for x in objective.modules() if isinstance(x, ProxyAnchorLoss) and x.sharded]
        self.shards = CheckpointShards(folder, objective, optimizer, sharded[0]) if sharded else None

    def save(self, name: str, state: TrainingState) -> None:
        """Write ``last`` or ``best``; if that fails, the earlier checkpoint of that name is still there."""
        content = {
            "format_version": FORMAT_VERSION,
            "encoder": self.encoder.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "state": asdict(state),
            "random": self._random_state(),
        }
        if process_count() > 1:
            content["random_by_process"] = gather_objects(content["random"])
        if self.shards is not None:
            with raise_together():
                content = self.shards.save(name, state.step, content, _write)
        with raise_together():
            if is_main():
                if name == "last":
                    self._keep_previous()
                _write(content, self.path(name))
                if self.shards is not None:
                    self.shards.remove_others(name, state.step)
        if name == "last":
            self.saved_step = state.step

    def _keep_previous(self) -> None:
        """Also name the last checkpoint ``previous.ckpt``; by a link, so that there is a last one at any time."""
        last, previous = self.path("last"), self.path("previous")
        if not last.is_file():
            return
        link = previous.with_suffix(".tmp")
        link.unlink(missing_ok=True)
        try:
            os.link(last, link)
        except OSError:  # a file system without links
            last.replace(previous)
        else:
            link.replace(previous)
            link.unlink(missing_ok=True)  # rename does nothing if both names were the same file already

    def load(self, name: str, model_only: bool = False) -> TrainingState:
        """Restore ``last`` or ``best``; if ``last`` is damaged, ``previous`` takes its place, with a warning."""
        state, damage = TrainingState(), None
        with raise_together():
            try:
                state = self._load(name, model_only)
            except _DamagedError as error:  # perhaps of a shard that only this process reads
                damage = error
                if name != "last" or not self.path("previous").is_file():
                    raise
        if not any(gather_objects(damage is not None)):
            if name == "last":
                self.saved_step = state.step
            return state
        with raise_together():
            if is_main():
                self._read(self.path("previous"), name)  # if that is damaged too, both are left in place
                print(
                    f"warning: {damage or 'a shard of the last checkpoint is damaged'}\n"
                    "warning: continuing from the checkpoint before it; the damaged one is kept as damaged.ckpt",
                    file=sys.stderr,
                )
                with suppress(FileNotFoundError):
                    self.path("last").replace(self.path("damaged"))
                self.path("previous").replace(self.path("last"))
        return self.load("last", model_only)

    def _load(self, name: str, model_only: bool) -> TrainingState:
        path = self.path(name)
        content = self._read(path, name)
        if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
            raise InputError("not a checkpoint of this version", path=path, expected=f"format version {FORMAT_VERSION}")
        if (self.shards is not None) != ("shards" in content):
            found = "sharded" if "shards" in content else "not sharded"
            raise InputError(f"its proxies are {found}", path=path, expected="as those of this run")
        try:
            if self.shards is not None:
                content = self.shards.load(name, content, lambda path: self._read(path, name))
            self.encoder.load_state_dict(content["encoder"])
            self.objective.load_state_dict(content["objective"])
            if not model_only:
                self.optimizer.load_state_dict(content["optimizer"])
                self._restore_random_state(content)
            return TrainingState(**content["state"])
        except InputError:
            raise
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, OverflowError) as error:
            raise InputError(f"made with another configuration: {error}", path=path) from error

    def _read(self, path: Path, name: str) -> Any:
        try:
            _verify_checksums(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=path != self.path(name))
        except (FileNotFoundError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
            raise _DamagedError(f"damaged checkpoint: {error}", path=path, hint=self._hint(name)) from error

    def _hint(self, name: str) -> str:
        other = "last" if name == "best" else "best"
        if not self.path(other).is_file():
            return f"remove {name}.ckpt to train from the start"
        if name == "best":
            return "remove best.ckpt to keep the model of the last epoch, and resume the run"
        return "copy best.ckpt to last.ckpt to continue from the best epoch, or remove last.ckpt to start over"

    def path(self, name: str) -> Path:
        """Return the path of a checkpoint."""
        return self.folder / f"{name}.ckpt"

    def _random_state(self) -> dict[str, Any]:
        name, keys, *rest = np.random.get_state(legacy=True)  # libraries still draw from the global state
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "python": random.getstate(),
            "numpy": (name, np.asarray(keys).tolist(), *rest),  # lists: weights_only does not load arrays
        }

    def _restore_random_state(self, content: dict[str, Any]) -> None:
        process, by_process = process_index(), content.get("random_by_process") or [content["random"]]
        saved = by_process[process if process < len(by_process) else 0]
        torch.set_rng_state(saved["torch"])
        if self.device.type == "cuda" and saved["cuda"] is not None:
            torch.cuda.set_rng_state(saved["cuda"], self.device)
        version, keys, gauss = saved["python"]
        random.setstate((version, tuple(keys), gauss))
        np.random.set_state(tuple(saved["numpy"]))
        if process >= len(by_process):  # saved by fewer processes: draw differently from the main one
            torch.manual_seed(torch.initial_seed() + process)


def _write(content: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        atomic_write(path, lambda file: torch.save(content, file))
    except RuntimeError as error:  # PyTorch hides the OSError of a failed write
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _verify_checksums(path: Path) -> None:
    """Raise BadZipFile if the archive or a checksum is wrong: PyTorch writes checksums and never reads them."""
    try:
        with zipfile.ZipFile(path) as parts:
            damaged = parts.testzip()
        torch.serialization.get_unsafe_globals_in_checkpoint(path)  # its reader rejects more headers
    except OSError as error:
        if error.errno != errno.EINVAL:  # a damaged offset; anything else is not the file's fault
            raise
        raise zipfile.BadZipFile(str(error)) from error
    except (MemoryError, zipfile.BadZipFile):
        raise
    except Exception as error:  # zipfile raises many types for damaged headers
        raise zipfile.BadZipFile(f"{type(error).__name__}: {error}") from error
    if damaged is not None:
        raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
