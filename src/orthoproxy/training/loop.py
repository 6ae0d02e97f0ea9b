"""The training loop: it reads from top to bottom."""

from __future__ import annotations

import itertools
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader

from orthoproxy.data import BatchSampler
from orthoproxy.errors import InputError
from orthoproxy.losses import Objective
from orthoproxy.models import Encoder
from orthoproxy.progress import Progress
from orthoproxy.training.checkpoint import Checkpoints, Position

Batch = tuple[Tensor, Tensor]
Record = dict[str, Any]


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


class Interrupted(Exception):  # noqa: N818 -- a wish of the user, no error
    """Ctrl-C came: the step was finished and the run saved; it can be resumed."""


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
    """Train until the epochs are over, early stopping strikes or Ctrl-C is pressed.

    Parameters
    ----------
    fabric
        Device and precision.
    encoder, objective, optimizer
        Trained in place.
    loader
        Yields (pixels, class numbers) for the batches of `sampler`.
    sampler
        Is told where to start each epoch.
    plan
        See `Plan`.
    checkpoints
        ``last`` is written after each epoch, ``best`` after each validation better than all before.
    log
        Takes each record: losses, rates and images a second, or validation scores.
    validate
        Scores the encoder on held-out classes; None: there are none, and no ``best`` is written.
    position
        Where to go on; None for the beginning.

    Returns
    -------
    Position
        At the end.

    Raises
    ------
    Interrupted
        After Ctrl-C, with the run saved.
    InputError
        If the loss is not finite.

    Examples
    --------
    Used by `orthoproxy.train`, whose example runs it whole.
    """
    position = position or Position()
    forward = fabric.setup_module(encoder)
    backbone = [p for group in optimizer.param_groups if group["name"] == "backbone" for p in group["params"]]
    steps_an_epoch = math.ceil(len(sampler) / plan.accumulate)
    with _stop_on_ctrl_c() as stopped, Progress("train", plan.epochs * steps_an_epoch, position.step) as progress:
        while position.epoch < plan.epochs and not _exhausted(position, plan):
            encoder.train()
            sampler.set_position(position.epoch, position.batch)
            meter = _Meter()
            for batches in _grouped(loader, plan.accumulate):
                for parameter in backbone:
                    parameter.requires_grad_(position.step >= plan.freeze_steps)
                factor = plan.rate_factor(position.step)
                for group in optimizer.param_groups:
                    group["lr"] = factor * group["highest_rate"]

                parts: dict[str, Tensor] = {}
                for images, labels in batches:
                    images, labels = fabric.to_device((images, labels))
                    parts = objective(forward(images), labels)
                    fabric.backward(parts["loss"] / len(batches))
                    meter.count(len(images))
                _clip(optimizer, plan)
                optimizer.step()
                optimizer.zero_grad()

                position.step += 1
                position.batch += len(batches)
                if position.step % plan.log_every == 0 or position.batch == len(sampler):
                    record = _record(parts, optimizer, position, meter)
                    log(record)
                    progress.note = f"loss {record['loss']:.3f}  {record['images_per_second']:.0f} images/s"
                progress.advance()
                if stopped():
                    checkpoints.save("last", position)
                    raise Interrupted(f"stopped after step {position.step}; the run is saved")

            position.epoch, position.batch = position.epoch + 1, 0
            line = f"epoch {position.epoch}/{plan.epochs}  {progress.note}"
            if validate is not None and (position.epoch % plan.validate_every == 0 or position.epoch == plan.epochs):
                scores = validate()
                log(_validation_record(scores, position))
                if _is_best(scores[plan.monitor], position):
                    checkpoints.save("best", position)
                line += f"  validation {plan.monitor} {100 * scores[plan.monitor]:.1f}"
            progress.say(line)
            checkpoints.save("last", position)
            if stopped():
                raise Interrupted(f"stopped after epoch {position.epoch}; the run is saved")
    return position


class _Meter:
    """Counts images and seconds between two records."""

    def __init__(self) -> None:
        self.images, self.start = 0, time.monotonic()

    def count(self, images: int) -> None:
        self.images += images

    def restart(self) -> tuple[float, float]:
        """Return images a second and seconds since the last restart."""
        seconds, images = time.monotonic() - self.start, self.images
        self.images, self.start = 0, time.monotonic()
        return images / seconds, seconds


def _record(parts: dict[str, Tensor], optimizer: torch.optim.Optimizer, position: Position, meter: _Meter) -> Record:
    losses = {name: float(value.detach()) for name, value in parts.items()}
    if not math.isfinite(losses["loss"]):
        raise InputError(
            f"the loss is {losses['loss']} at step {position.step}: training.rates or loss.args are too extreme; "
            "lower them (the last checkpoint is from before)"
        )
    images_per_second, seconds = meter.restart()
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


def _validation_record(scores: dict[str, float], position: Position) -> Record:
    named = {f"validation/{name}": value for name, value in scores.items()}
    return {"step": position.step, "epoch": position.epoch, **named}


def _clip(optimizer: torch.optim.Optimizer, plan: Plan) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if plan.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(parameters, plan.clip_norm)
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


@contextmanager
def _stop_on_ctrl_c() -> Iterator[Callable[[], bool]]:
    """Note the first Ctrl-C instead of raising; a second one stops at once."""
    pressed, process = False, os.getpid()

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if os.getpid() != process:  # a worker of the loader, which goes on until the loop stops
            return
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        print("stopping after this step; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)

    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, note) if in_main_thread else None
    try:
        yield lambda: pressed
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, before)
