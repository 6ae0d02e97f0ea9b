"""What must not get into the weights, and what must not be lost."""

from __future__ import annotations

import copy
import csv
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader

from orthoproxy.core.distributed import any_process, is_main, raise_together
from orthoproxy.core.errors import InputError
from orthoproxy.core.progress import Progress
from orthoproxy.data import BatchSampler
from orthoproxy.losses import Objective
from orthoproxy.models import Encoder
from orthoproxy.training.checkpoint import Checkpoints, Position

Batch = Sequence[Tensor]  # pixels and class numbers
Record = dict[str, Any]


class Diverged(InputError):  # noqa: N818 -- what happened to the training
    """The weights are not finite any more, or too many losses are not; what was saved is from before.

    Examples
    --------
    >>> raise Diverged("the loss is nan at step 10")
    Traceback (most recent call last):
    ...
    orthoproxy.training.nonfinite.Diverged: the loss is nan at step 10
    """


class Guard:
    """Leaves steps out that are not finite, and saves what was trained where no more images come.

    Parameters
    ----------
    encoder, objective
        What is trained.
    loader, sampler
        Of the batches; their data set's `files` name the images.
    checkpoints
        Where the run is saved.
    limit
        Steps that may be left out.
    log
        Takes a record of each; called in the main process only.

    Examples
    --------
    Used by `fit`.
    """

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        loader: DataLoader,
        sampler: BatchSampler,
        checkpoints: Checkpoints,
        limit: int,
        log: Callable[[Record], None],
    ) -> None:
        self.encoder, self.objective, self.checkpoints, self.log = encoder, objective, checkpoints, log
        self.files, self.sampler, self.limit = getattr(loader.dataset, "files", None), sampler, limit
        self.buffers: list[Tensor] = []
        self.bad = self.bad_before = self.first = 0

    def begin(self, position: Position) -> None:
        """Begin an epoch, perhaps in its midst."""
        self.bad_before, self.first = self.bad, position.step

    def read(self, groups: Iterator[list[Batch]], position: Position, progress: Progress) -> list[Batch]:
        """Return the batches of the next step, none at the end of the epoch."""
        batches, error = [], None
        try:
            batches = next(groups, [])
        except Exception as found:  # whatever it is, the weights are as the last step left them
            error = found
        if any_process(error is not None):
            if position.step > self.first:  # else it is saved already, or there is nothing to save
                self._save(position)
                progress.say(f"saved after step {position.step}; --resume goes on from there")
            with raise_together():
                if error is not None:
                    raise error
        return batches

    def remember(self) -> None:
        """Remember what a step changes besides the weights: the statistics of live batch norm, a miner's memory."""
        self.buffers = [x.clone() for x in self._live_buffers()]

    def _live_buffers(self) -> list[Tensor]:
        return [*self.encoder.buffers(), *self.objective.buffers()]

    def leaves_out(self, parts: list[dict[str, Tensor]], position: Position, progress: Progress, batches: int) -> bool:
        """Whether the step is not to be taken; it is told and counted, and one too many ends the training."""
        trouble = self._trouble(parts)
        if not any_process(bool(trouble)):
            return False
        step = position.step + 1
        trouble = trouble or "the loss or a gradient of another process is not finite"
        for x, before in zip(self._live_buffers(), self.buffers, strict=True):
            x.copy_(before)
        with raise_together():
            if not _all_finite(self.encoder, self.objective):
                raise Diverged(_DIVERGED.format(what=trouble, step=step))
        self.bad += 1
        files = self._files(position, batches)
        with raise_together():
            if is_main():
                self._note(step, files)
        some = ", ".join(files[:3]) + f" and {len(files) - 3} more" * (len(files) > 3)
        told = f"{trouble} at step {step}, of {some or 'images without a file'}"
        if self.bad > self.limit:
            self._save(position)
            raise Diverged(
                f"{told}; {self.bad} such steps, and training.max_bad_batches is {self.limit}\n"
                f"mend what {self._list.name} names, or lower training.rates; the run is saved as before that step"
            )
        if is_main():
            self.log({"step": step, "epoch": position.epoch + 1, "bad_batches": self.bad})
        progress.say(f"note: {told}; the step is left out, {self.bad} of at most {self.limit}")
        return True

    def _trouble(self, parts: list[dict[str, Tensor]]) -> str:
        """What is not finite, if anything; on a GPU this waits for the step, once."""
        parameters = [*self.encoder.parameters(), *self.objective.parameters()]
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        loss = torch.stack([part["loss"] for part in parts]).mean()
        loss, norm = torch.stack([loss.float(), norm.to(loss.device).float()]).tolist()
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        return "" if math.isfinite(norm) else "a gradient is not finite"

    def _files(self, position: Position, batches: int) -> list[str]:
        """The images of a step, of all processes together."""
        if self.files is None:
            return []
        whole = copy.copy(self.sampler)
        whole.process, whole.of = 0, 1
        whole.set_position(position.epoch, position.batch)
        return [str(self.files[row]) for batch in itertools.islice(whole, batches) for row, _ in batch]

    @property
    def _list(self) -> Path:
        return self.checkpoints.folder / "bad_batches.csv"

    def _note(self, step: int, files: list[str]) -> None:
        self._list.parent.mkdir(parents=True, exist_ok=True)
        with self._list.open("a", encoding="utf-8", errors="surrogateescape", newline="") as file:
            csv.writer(file).writerows((step, path) for path in files)

    def end(self, position: Position) -> None:
        """End an epoch; nothing was learnt in one without a finite loss."""
        steps = position.step - self.first
        if steps and self.bad - self.bad_before == steps:
            raise Diverged(_DIVERGED.format(what="no loss of the epoch is finite", step=position.step))

    def _save(self, position: Position) -> None:
        require_finite(self.encoder, self.objective, position)
        self.checkpoints.save("last", position)


_DIVERGED = (
    "{what} at step {step}: training.rates or loss.args are too extreme, lower them; what is saved is from before"
)


def _all_finite(encoder: Encoder, objective: Objective) -> bool:
    return all(bool(p.isfinite().all()) for p in (*encoder.parameters(), *objective.parameters()))


def require_finite(encoder: Encoder, objective: Objective, position: Position) -> None:
    """Never judge or save a model that has diverged.

    Parameters
    ----------
    encoder, objective
        What is trained.
    position
        Where the run stands.

    Raises
    ------
    Diverged
        If a weight is not finite, in any process.

    Examples
    --------
    Used by `fit`.
    """
    with raise_together():
        if not _all_finite(encoder, objective):
            raise Diverged(_DIVERGED.format(what="the weights are not finite", step=position.step))
