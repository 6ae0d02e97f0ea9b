"""Checkpoints of sharded proxies: one file per process, readable by any number of processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orthoproxy.core.distributed import process_count, process_index
from orthoproxy.core.errors import InputError
from orthoproxy.losses import ProxyAnchorLoss

Content = dict[str, Any]


class CheckpointShards:
    """The files ``NAME-step-S.proxies-R-of-W.ckpt`` beside ``NAME.ckpt``, which lists them.

    Each holds the proxies of one process and their optimizer state. They are written under names of their step before
    the checkpoint that lists them, and those of earlier steps are removed last, so whatever a checkpoint lists is
    complete. The files of ``last.ckpt`` stay when it becomes ``previous.ckpt``.
    """

    def __init__(
        self, folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer, loss: ProxyAnchorLoss
    ) -> None:
        self.folder, self.loss = folder, loss
        self.key = next(name for name, x in objective.named_parameters() if x is loss.proxies)
        parameters = [x for group in optimizer.param_groups for x in group["params"]]
        self.index = next(index for index, x in enumerate(parameters) if x is loss.proxies)
        self.last_files: list[str] = []  # listed in last.ckpt

    def _names(self, name: str, step: int) -> list[str]:
        count = process_count()
        return [f"{name}-step-{step}.proxies-{process}-of-{count}.ckpt" for process in range(count)]

    def save(self, name: str, step: int, content: Content, write: Callable[[Content, Path], None]) -> Content:
        """Write the rows of this process; return the content without them, listing the files instead."""
        objective, moments = dict(content["objective"]), dict(content["optimizer"]["state"].get(self.index, {}))
        rows = {"proxies": objective.pop(self.key)}
        rows |= {field: moments.pop(field) for field, x in list(moments.items()) if x.ndim}
        names = self._names(name, step)
        write({"step": step, "rows": rows}, self.folder / names[process_index()])
        optimizer = {**content["optimizer"], "state": {**content["optimizer"]["state"], self.index: moments}}
        shards = [{"file": file, "rows": size} for file, size in zip(names, self.loss.sizes, strict=True)]
        return {**content, "objective": objective, "optimizer": optimizer, "shards": shards}

    def load(self, name: str, content: Content, read: Callable[[Path], Any]) -> Content:
        """Return the content with the rows of this process, whatever the number of processes that wrote them."""
        own, parts, first = self.loss.classes, [], 0
        for shard in content["shards"]:
            start, end = max(own.start, first), min(own.stop, first + shard["rows"])
            if start < end or not parts:  # a process without proxies still needs the fields and their shapes
                part = read(self.folder / shard["file"])
                if part["step"] != content["state"]["step"]:
                    raise InputError(f"not of step {content['state']['step']}", path=self.folder / shard["file"])
                start, end = start - first, max(start, end) - first
                parts.append({field: rows[start:end] for field, rows in part["rows"].items()})
            first += shard["rows"]
        if first != self.loss.num_classes:
            raise InputError(f"checkpoint of {first} classes (expected {self.loss.num_classes})", path=self.folder)
        if name == "last":
            self.last_files = [shard["file"] for shard in content["shards"]]
        rows = {field: torch.cat([part[field] for part in parts]) for field in parts[0]}
        content["objective"][self.key] = rows.pop("proxies")
        content["optimizer"]["state"].setdefault(self.index, {}).update(rows)
        return content

    def remove_others(self, name: str, step: int) -> None:
        """Remove files of other steps and numbers of processes, but those that ``previous.ckpt`` lists."""
        own = self._names(name, step)
        kept = {*own, *self.last_files} if name == "last" else set(own)
        for path in self.folder.glob(f"{name}-step-*.proxies-*"):
            if path.name not in kept:
                path.unlink()
        if name == "last":
            self.last_files = own
