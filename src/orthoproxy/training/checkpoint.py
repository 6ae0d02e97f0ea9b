"""Checkpoints: everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import os
import random
import sys
import zipfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import nn

from orthoproxy.core.distributed import gather_objects, is_main, process_count, process_index, raise_together
from orthoproxy.core.errors import InputError
from orthoproxy.core.files import atomic_write
from orthoproxy.losses import ShardedProxyAnchorLoss
from orthoproxy.training.checkpoint_shards import Shards

FORMAT_VERSION = 1


class Damaged(InputError):  # noqa: N818 -- what happened to the file
    """A checkpoint is not there, or not as it was written.

    Examples
    --------
    >>> raise Damaged("cannot read the checkpoint last.ckpt, which is cut short or damaged")
    Traceback (most recent call last):
    ...
    orthoproxy.training.checkpoint.Damaged: cannot read the checkpoint last.ckpt, which is cut short or damaged
    """


def has_checkpoint(folder: Path) -> bool:
    """Whether a run can go on from what the folder holds.

    Parameters
    ----------
    folder
        Of the checkpoints.

    Examples
    --------
    >>> has_checkpoint(Path("runs/nowhere/checkpoints"))
    False
    """
    return any((folder / f"{name}.ckpt").is_file() for name in ("last", "previous"))


@dataclass
class Position:
    """Where a run stands.

    Parameters
    ----------
    step
        Optimiser steps taken.
    epoch, batch
        The next batch to train on, counted from 0.
    best
        Highest validation score so far.
    best_epoch
        The epoch, from 1, after which it was reached.
    stale
        Validations since then.
    seconds
        Time spent training.

    Examples
    --------
    >>> Position().step
    0
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best: float = -1.0
    best_epoch: int = 0
    stale: int = 0
    seconds: float = 0.0


class Checkpoints:
    """The checkpoints of a run: ``last.ckpt``, the one before it as ``previous.ckpt``, and ``best.ckpt``.

    Written to another name, flushed to disk and renamed, so that a reader never sees half a file; read without running
    code that a file may hold, and only where every part has the checksum that was written with it. Where ``last.ckpt``
    has not, the run goes on from ``previous.ckpt``, takes the steps since then again, and comes to the same weights.

    Of several processes the main one writes, and all read. Where proxies are divided among them, each writes its own,
    see `shards.Shards`.

    Parameters
    ----------
    folder
        Created on the first save.
    encoder, objective, optimizer
        What is saved and restored: weights, proxies and optimiser state. The rates of a step follow from its number,
        and the batches of an epoch from the seed, so the position stands for schedule and sampler.

    Examples
    --------
    >>> import tempfile
    >>> layer = nn.Linear(2, 2)
    >>> folder = Path(tempfile.mkdtemp())
    >>> checkpoints = Checkpoints(folder, layer, nn.Identity(), torch.optim.AdamW(layer.parameters()))
    >>> checkpoints.save("last", Position(step=3))
    >>> checkpoints.load("last").step
    3
    """

    def __init__(
        self, folder: Path, encoder: nn.Module, objective: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        self.folder, self.encoder, self.objective, self.optimizer = folder, encoder, objective, optimizer
        sharded = [module for module in objective.modules() if isinstance(module, ShardedProxyAnchorLoss)]
        self.shards = Shards(folder, objective, optimizer, sharded[0]) if sharded else None

    def save(self, name: str, position: Position) -> None:
        """Write a checkpoint.

        Parameters
        ----------
        name
            ``last`` or ``best``.
        position
            Where the run stands.

        Raises
        ------
        OSError
            If the disk is full, for example; the earlier checkpoint of that name is then still there.
        """
        state = {
            "format_version": FORMAT_VERSION,
            "encoder": self.encoder.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "position": asdict(position),
            "random": _random_states(),
        }
        if process_count() > 1:
            state["random_of_others"] = gather_objects(state["random"])[1:]
        if self.shards is not None:
            with raise_together():
                state = self.shards.save(name, position.step, state, _write)
        with raise_together():
            if is_main():
                if name == "last":
                    self._keep_last()
                _write(state, self.path(name))
                if self.shards is not None:
                    self.shards.remove_others(name, position.step)

    def _keep_last(self) -> None:
        """Let the last checkpoint also be the previous one; there is a last one at any time, if links can be made."""
        last, previous = self.path("last"), self.path("previous")
        if not last.is_file():
            return
        link = previous.with_suffix(".tmp")
        link.unlink(missing_ok=True)
        try:
            os.link(last, link)
        except OSError:  # of a file system without links
            last.replace(previous)
        else:
            link.replace(previous)
            link.unlink(missing_ok=True)  # still there where both names were one file already, after a full disk

    def load(self, name: str, model_only: bool = False) -> Position:
        """Restore a checkpoint; ``previous`` becomes ``last`` where that is damaged, which is said.

        Parameters
        ----------
        name
            ``last`` or ``best``.
        model_only
            Restore encoder and objective only, not optimiser and random states.

        Returns
        -------
        Position
            Where the run stood.

        Raises
        ------
        InputError
            If the file is damaged and there is none before it, or it is of another version or configuration.
        """
        position, damage = Position(), None
        with raise_together():
            try:
                position = self._load(name, model_only)
            except Damaged as error:  # perhaps of a part that this process alone reads
                damage = error
                if name != "last" or not self.path("previous").is_file():
                    raise
        found = [error for error in gather_objects(damage and str(damage)) if error]
        if not found:
            return position
        with raise_together():
            if is_main():
                self._fall_back(found[0])
        return self.load("last", model_only)

    def _fall_back(self, damage: str) -> None:
        """Put the damaged checkpoint aside and the previous one in its place."""
        print(
            f"note: {damage.splitlines()[0]}\nnote: going on from the checkpoint before it; the damaged one is kept as "
            "damaged.ckpt",
            file=sys.stderr,
        )
        with suppress(FileNotFoundError):
            self.path("last").replace(self.path("damaged"))
        self.path("previous").replace(self.path("last"))

    def _load(self, name: str, model_only: bool) -> Position:
        path = self.path(name)
        state = self._read(path, name)
        if not isinstance(state, dict) or state.get("format_version") != FORMAT_VERSION:
            raise InputError(f"{path}: not a checkpoint of format version {FORMAT_VERSION}")
        if (self.shards is not None) != ("shards" in state):
            raise InputError(f"{path}: made with another configuration: of loss.shard_proxies")
        try:
            if self.shards is not None:
                state = self.shards.load(name, state, lambda path: self._read(path, name))
            self.encoder.load_state_dict(state["encoder"])
            self.objective.load_state_dict(state["objective"])
            if not model_only:
                self.optimizer.load_state_dict(state["optimizer"])
                _restore_random_states(state)
            return Position(**state["position"])
        except InputError:
            raise
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, OverflowError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"{path}: made with another configuration: {reason}") from error

    def _read(self, path: Path, name: str) -> Any:
        try:
            _require_checksums(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=path != self.path(name))
        except Exception as error:  # of many types, as the damage may be anywhere
            reason = (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0]
            raise Damaged(
                f"cannot read the checkpoint {path}, which is cut short or damaged: {reason}\n{self._remedy(name)}"
            ) from error

    def _remedy(self, name: str) -> str:
        other = "last" if name == "best" else "best"
        if not self.path(other).is_file():
            return f"remove {name}.ckpt to train from the start"
        if name == "best":
            return "remove best.ckpt to keep the last epoch's model, and go on with --resume"
        return "copy best.ckpt to last.ckpt to go on from the best epoch, or remove last.ckpt to train from the start"

    def path(self, name: str) -> Path:
        """Return where a checkpoint lies."""
        return self.folder / f"{name}.ckpt"


def _write(state: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda file: _save(state, file))


def _require_checksums(path: Path) -> None:
    """Compare every part of a file with its checksum, which PyTorch writes and does not look at when it reads."""
    with zipfile.ZipFile(path) as parts:
        damaged = parts.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} does not fit")


def _save(state: dict[str, Any], file: IO[bytes]) -> None:
    try:
        torch.save(state, file)
    except RuntimeError as error:  # PyTorch's own, about the bytes that are missing after a write that failed
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _random_states() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state(legacy=True)  # libraries still draw from the global state
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": (name, np.asarray(keys).tolist(), *rest),  # plain numbers: arrays would need pickled code to load
    }


def _restore_random_states(checkpoint: dict[str, Any]) -> None:
    process, of_all = process_index(), [checkpoint["random"], *checkpoint.get("random_of_others", [])]
    states = of_all[process if process < len(of_all) else 0]
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    np.random.set_state(tuple(states["numpy"]))
    if process >= len(of_all):  # there were fewer processes: draw differently from the main one
        torch.manual_seed(torch.initial_seed() + process)
