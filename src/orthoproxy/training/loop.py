"""The training loop: it reads from top to bottom."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils.data import DataLoader

from orthoproxy.core.distributed import (
    all_gather_rows,
    all_reduce_sum,
    any_process,
    average_gradients,
    broadcast_,
    is_main,
    process_count,
    process_index,
)
from orthoproxy.core.errors import InputError, WorkerLost
from orthoproxy.core.progress import Progress
from orthoproxy.data import BatchSampler
from orthoproxy.data.loading import iterate_batches
from orthoproxy.losses import Objective
from orthoproxy.models import Encoder
from orthoproxy.training.checkpoint import Checkpoints, Position
from orthoproxy.training.nonfinite import Batch, Diverged, Guard, Record, require_finite
from orthoproxy.training.signals import Interrupted, Stop, StopNow, stop_on_signal

__all__ = ["Diverged", "Interrupted", "Plan", "fit"]


@dataclass(frozen=True)
class Plan:
    """What the loop does when.

    Parameters
    ----------
    epochs
        Passes over the training images.
    accumulate
        Batches a step.
    rate_factor
        From the step's number to what the highest rates are multiplied with.
    freeze_steps
        The backbone stands still for so many steps.
    clip_norm, clip_value
        Bounds on the gradient's norm and elements, or None.
    validate_every
        Epochs between two validations.
    monitor
        The score that tells the best checkpoint.
    patience
        Stop after so many validations without a better one; None: never.
    log_every
        Steps between two records.
    max_bad_batches
        Steps that may be left out because their loss or a gradient is not finite.

    Examples
    --------
    >>> Plan(epochs=3).accumulate
    1
    """

    epochs: int
    accumulate: int = 1
    rate_factor: Callable[[int], float] = lambda step: 1.0
    freeze_steps: int = 0
    clip_norm: float | None = None
    clip_value: float | None = None
    validate_every: int = 1
    monitor: str = "map@r"
    patience: int | None = None
    log_every: int = 10
    max_bad_batches: int = 10


def fit(
    fabric: Fabric,
    encoder: Encoder,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader,
    sampler: BatchSampler,
    plan: Plan,
    checkpoints: Checkpoints,
    log: Callable[[Record], None],
    validate: Callable[[], dict[str, float]] | None = None,
    position: Position | None = None,
) -> Position:
    """Train until the epochs are over, early stopping strikes, Ctrl-C is pressed or SIGTERM comes.

    A step whose loss or gradient is not finite is left out: it is counted, its record has ``bad_batches`` in place of
    losses, and ``bad_batches.csv`` beside the checkpoints gets its images. Where images cannot be read any more, what
    was trained is saved before the error is raised.

    Several processes minimise the loss of the whole batch: each embeds its part, gets the embeddings of all, and
    computes the loss L of all. On the way back, process r gets the sum over the processes of their gradients by its
    embeddings X_r, that is W dL/dX_r. Through the encoder it becomes W times a part of the gradient by the weights; of
    these DDP's mean over the processes makes the sum of the parts, which is the whole. The objective's parameters are
    outside DDP. Their gradients are equal already, and averaged so that they stay so where rounding or a miner's random
    draws differ. (For proxies divided among the processes see `losses.sharded`.)

    Parameters
    ----------
    fabric
        Device and precision.
    encoder, objective, optimizer
        Trained in place; the same in every process.
    loader
        Yields (pixels, class numbers) for the batches of `sampler`.
    sampler
        Is told where to start each epoch; knows which part of a batch is this process's.
    plan
        See `Plan`.
    checkpoints
        ``last`` is written after each epoch, ``best`` after each validation better than all before.
    log
        Takes each record: losses, rates and images a second, or validation scores. Called in the main process only.
    validate
        Scores the encoder on held-out classes; None: there are none, and no ``best`` is written. Called in every
        process, where it must return the same.
    position
        Where to go on; None for the beginning.

    Returns
    -------
    Position
        At the end.

    Raises
    ------
    Interrupted
        After Ctrl-C or SIGTERM, with the run saved.
    Diverged
        If the weights are not finite; or the loss or a gradient in more steps than `plan` allows since this call, or in
        all of an epoch: then the run is saved as it was before the last of these steps.
    InputError, WorkerLost
        If images cannot be read, with the run saved.

    Examples
    --------
    Used by `orthoproxy.train`, whose example runs it whole.
    """
    position = position or Position()
    forward = _Forward(fabric, encoder)
    guard = Guard(encoder, objective, loader, sampler, checkpoints, plan.max_bad_batches, log)
    steps_an_epoch, sizes = math.ceil(len(sampler) / plan.accumulate), sampler.sizes
    with stop_on_signal() as stop, Progress("train", plan.epochs * steps_an_epoch, position.step) as progress:
        while position.epoch < plan.epochs and not _exhausted(position, plan):
            encoder.train()
            sampler.set_position(position.epoch, position.batch)
            meter, groups = _Meter(), _grouped(iterate_batches(loader), plan.accumulate)
            guard.begin(position)
            loss = ""
            while batches := guard.read(groups, position, progress):
                _set_rates(optimizer, plan, position.step)
                forward.prepare()
                guard.remember()
                parts = [
                    _forward_backward(fabric, forward, objective, batch, sizes, len(batches), batch is batches[-1])
                    for batch in batches
                ]
                if objective.sharded is None:
                    average_gradients(objective.parameters())
                left_out = guard.leaves_out(parts, position, progress, len(batches))
                if not left_out:
                    _clip(optimizer, objective, plan)
                    optimizer.step()
                optimizer.zero_grad()

                position.step += 1
                position.batch += len(batches)
                meter.count(sum(sizes) * len(batches))
                if not left_out and (position.step % plan.log_every == 0 or position.batch == len(sampler)):
                    record = _record(parts, optimizer, position, meter)
                    if is_main():
                        log(record)
                    loss = f"loss {record['loss']:.3f}  "
                progress.note = f"{loss}{meter.speed():.0f} images/s"
                progress.advance()
                if any_process(stop.asked):
                    require_finite(encoder, objective, position)
                    position.seconds += meter.record()[1]
                    checkpoints.save("last", position)
                    raise Interrupted(f"stopped after step {position.step}; the run is saved", stop.number)

            guard.end(position)
            position.epoch, position.batch = position.epoch + 1, 0
            require_finite(encoder, objective, position)
            broadcast_(encoder.buffers())  # live batch norm's, which each process has of its own images
            line = f"epoch {position.epoch}/{plan.epochs}  {progress.note}"
            if validate is not None and (position.epoch % plan.validate_every == 0 or position.epoch == plan.epochs):
                scores = _validated(validate, stop, checkpoints, position, len(sampler))
                if is_main():
                    log(_validation_record(scores, position))
                if _is_best(scores[plan.monitor], position):
                    checkpoints.save("best", position)
                line += f"  validation {plan.monitor} {100 * scores[plan.monitor]:.1f}"
            progress.say(line)
            checkpoints.save("last", position)
            if any_process(stop.asked):
                raise Interrupted(f"stopped after epoch {position.epoch}; the run is saved", stop.number)
    return position


def _set_rates(optimizer: torch.optim.Optimizer, plan: Plan, step: int) -> None:
    """Set each group's rate for a step; the backbone gets no gradient while it is frozen."""
    factor = plan.rate_factor(step)
    for group in optimizer.param_groups:
        group["lr"] = factor * group["highest_rate"]
        if group["name"] == "backbone":
            for parameter in group["params"]:
                parameter.requires_grad_(step >= plan.freeze_steps)


class _Forward:
    """The encoder in the hands of Fabric, which gives it precision and, with several processes, DDP."""

    def __init__(self, fabric: Fabric, encoder: Encoder) -> None:
        self.fabric, self.encoder = fabric, encoder
        self.trained: list[bool] = []
        self.module: Any = None

    def prepare(self) -> None:
        """Take the encoder over; again when other parameters are trained, since DDP averages those it met at first."""
        trained = [parameter.requires_grad for parameter in self.encoder.parameters()]
        if self.module is None or (process_count() > 1 and trained != self.trained):
            nothing_to_average = process_count() > 1 and not any(trained)
            self.module = None if nothing_to_average else self.fabric.setup_module(self.encoder)
        self.trained = trained

    def __call__(self, images: Tensor) -> Tensor:
        if self.module is not None:
            return self.module(images)
        with self.fabric.autocast():
            return self.encoder(images)

    def averaging(self, whether: bool) -> AbstractContextManager[None]:
        """Average gradients over the processes, or leave that to a later batch of the step."""
        return nullcontext() if self.module is None else self.fabric.no_backward_sync(self.module, not whether)


def _forward_backward(
    fabric: Fabric,
    forward: _Forward,
    objective: Objective,
    batch: Batch,
    sizes: Sequence[int],
    batches: int,
    last: bool,
) -> dict[str, Tensor]:
    images, labels = fabric.to_device(batch)
    own = sizes[process_index()]  # fewer than the images where there is no part for this process
    with forward.averaging(last):
        embeddings = all_gather_rows(forward(images)[:own], sizes)
        parts = objective(embeddings, all_gather_rows(labels[:own], sizes))
        fabric.backward(parts["loss"] / batches)
    return {name: value.detach() for name, value in parts.items()}


class _Meter:
    """Counts images and seconds, of the epoch and since the last record."""

    def __init__(self) -> None:
        self.images = self.recorded_images = 0
        self.start = self.recorded = time.monotonic()

    def count(self, images: int) -> None:
        self.images += images

    def speed(self) -> float:
        """Images a second in this epoch."""
        return self.images / max(time.monotonic() - self.start, 1e-9)

    def record(self) -> tuple[float, float]:
        """Images a second, and seconds, since the last call."""
        now = time.monotonic()
        seconds, images = now - self.recorded, self.images - self.recorded_images
        self.recorded, self.recorded_images = now, self.images
        return images / max(seconds, 1e-9), seconds


def _record(
    parts: list[dict[str, Tensor]], optimizer: torch.optim.Optimizer, position: Position, meter: _Meter
) -> Record:
    losses = {name: torch.stack([part[name] for part in parts]).mean().item() for name in parts[0]}
    images_per_second, seconds = meter.record()
    position.seconds += seconds
    rates = {f"rate/{group['name']}": group["lr"] for group in optimizer.param_groups}
    return {
        "step": position.step,
        "epoch": position.epoch + 1,
        **losses,
        **rates,
        "images_per_second": images_per_second,
        "seconds": position.seconds,
    }


def _validated(
    validate: Callable[[], dict[str, float]],
    stop: Stop,
    checkpoints: Checkpoints,
    position: Position,
    batches_an_epoch: int,
) -> dict[str, float]:
    """Validate; what ends it ends no epoch: that is saved as it was after the last step, to be validated then."""
    random = torch.get_rng_state()  # of which loaders draw
    try:
        with stop.at_once() if process_count() == 1 else nullcontext():  # others would wait for ever
            return validate()
    except (StopNow, InputError, WorkerLost) as reason:
        position.epoch, position.batch = position.epoch - 1, batches_an_epoch
        torch.set_rng_state(random)
        checkpoints.save("last", position)
        if not isinstance(reason, StopNow):
            raise
        raise Interrupted(f"stopped after step {position.step}; the run is saved", stop.number) from None


def _validation_record(scores: dict[str, float], position: Position) -> Record:
    named = {f"validation/{name}": value for name, value in scores.items()}
    return {"step": position.step, "epoch": position.epoch, **named}


def _clip(optimizer: torch.optim.Optimizer, objective: Objective, plan: Plan) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if plan.clip_norm is not None and objective.sharded is None:
        torch.nn.utils.clip_grad_norm_(parameters, plan.clip_norm)
    elif plan.clip_norm is not None:
        elsewhere = set(objective.parameters())  # of which other processes keep the rest
        squares = get_total_norm([p.grad for p in parameters if p.grad is not None and p not in elsewhere]) ** 2
        squares += all_reduce_sum(get_total_norm([p.grad for p in elsewhere if p.grad is not None]) ** 2)
        clip_grads_with_norm_(parameters, plan.clip_norm, squares.sqrt())
    if plan.clip_value is not None:
        torch.nn.utils.clip_grad_value_(parameters, plan.clip_value)


def _is_best(score: float, position: Position) -> bool:
    if score > position.best:
        position.best, position.best_epoch, position.stale = score, position.epoch, 0
        return True
    position.stale += 1
    return False


def _exhausted(position: Position, plan: Plan) -> bool:
    return plan.patience is not None and position.stale >= plan.patience


def _grouped(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group
