"""Checkpoints of proxies that are divided among processes: a file of each process, whatever their number on reading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orthoproxy.core.distributed import process_count, process_index
from orthoproxy.core.errors import InputError
from orthoproxy.losses import ShardedProxyAnchorLoss

State = dict[str, Any]


class Shards:
    """The files ``NAME-step-S.proxies-R-of-W.ckpt`` beside a checkpoint ``NAME.ckpt``, which lists them.

    Each holds a process's rows of the proxies and of their optimiser state. They are written under the step's own names
    before the checkpoint that lists them replaces the one of an earlier step, and those of the earlier step go last: so
    what a checkpoint lists is whole, and of its own step. The files of ``last.ckpt`` stay when it becomes
    ``previous.ckpt``.

    Parameters
    ----------
    folder
        Of the checkpoints.
    objective, optimizer
        What the checkpoints hold.
    loss
        Part of the objective; keeps the rows of this process.

    Examples
    --------
    >>> loss = ShardedProxyAnchorLoss(3, 8)
    >>> Shards(Path("checkpoints"), loss, torch.optim.AdamW(loss.parameters()), loss).names("last", step=7)
    ['last-step-7.proxies-0-of-1.ckpt']
    """

    def __init__(
        self, folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer, loss: ShardedProxyAnchorLoss
    ) -> None:
        self.folder, self.loss = folder, loss
        self.key = next(name for name, x in objective.named_parameters() if x is loss.proxies)
        parameters = [x for group in optimizer.param_groups for x in group["params"]]
        self.number = next(number for number, x in enumerate(parameters) if x is loss.proxies)
        self.of_last: list[str] = []  # the files that last.ckpt lists

    def names(self, name: str, step: int) -> list[str]:
        """Return the names of the files of all processes.

        Parameters
        ----------
        name, step
            Of the checkpoint.
        """
        count = process_count()
        return [f"{name}-step-{step}.proxies-{process}-of-{count}.ckpt" for process in range(count)]

    def save(self, name: str, step: int, state: State, write: Callable[[State, Path], None]) -> State:
        """Write this process's rows.

        Parameters
        ----------
        name, step
            Of the checkpoint.
        state
            All that it is to hold.
        write
            Writes a file.

        Returns
        -------
        dict
            The state without the rows, with a list of the files instead.
        """
        objective, of_proxies = dict(state["objective"]), dict(state["optimizer"]["state"].get(self.number, {}))
        rows = {"proxies": objective.pop(self.key)}
        rows |= {field: of_proxies.pop(field) for field, x in list(of_proxies.items()) if x.ndim}
        names = self.names(name, step)
        write({"step": step, "rows": rows}, self.folder / names[process_index()])
        optimizer = {**state["optimizer"], "state": {**state["optimizer"]["state"], self.number: of_proxies}}
        listed = [{"file": file, "rows": size} for file, size in zip(names, self.loss.sizes, strict=True)]
        return {**state, "objective": objective, "optimizer": optimizer, "shards": listed}

    def load(self, name: str, state: State, read: Callable[[Path], Any]) -> State:
        """Read the rows of this process, from the files of however many processes wrote them.

        Parameters
        ----------
        name
            Of the checkpoint.
        state
            As a checkpoint holds it.
        read
            Reads a file.

        Returns
        -------
        dict
            The state with the rows.

        Raises
        ------
        InputError
            If a file is of another step, or the rows are not as many as there are classes.
        """
        own, found, first = self.loss.classes, [], 0
        for listed in state["shards"]:
            start, end = max(own.start, first), min(own.stop, first + listed["rows"])
            if start < end or not found:  # a process that keeps no proxy still learns what there would be
                part = read(self.folder / listed["file"])
                if part["step"] != state["position"]["step"]:
                    raise InputError(f"{self.folder / listed['file']}: not of step {state['position']['step']}")
                start, end = start - first, max(start, end) - first
                found.append({field: rows[start:end] for field, rows in part["rows"].items()})
            first += listed["rows"]
        if first != self.loss.num_classes:
            raise InputError(f"{self.folder}: made with another configuration: of {first} classes")
        if name == "last":
            self.of_last = [listed["file"] for listed in state["shards"]]
        rows = {field: torch.cat([part[field] for part in found]) for field in found[0]}
        state["objective"][self.key] = rows.pop("proxies")
        state["optimizer"]["state"].setdefault(self.number, {}).update(rows)
        return state

    def remove_others(self, name: str, step: int) -> None:
        """Remove the files of other steps and of other numbers of processes.

        Parameters
        ----------
        name, step
            Of the checkpoint whose files stay; beside those of ``last.ckpt``, those that it listed before.
        """
        own = self.names(name, step)
        kept = {*own, *self.of_last} if name == "last" else set(own)
        for path in self.folder.glob(f"{name}-step-*.proxies-*"):
            if path.name not in kept:
                path.unlink()
        if name == "last":
            self.of_last = own
