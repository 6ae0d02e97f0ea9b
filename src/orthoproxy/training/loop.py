"""The training loop; it reads from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils.checkpoint import checkpoint

from orthoproxy.core.distributed import (
    RemoteProcessError,
    all_gather_rows,
    all_reduce_sum,
    any_process,
    average_gradients,
    broadcast_,
    is_main,
    process_count,
    process_index,
    raise_together,
)
from orthoproxy.core.errors import InputError, WorkerLost
from orthoproxy.core.progress import Progress
from orthoproxy.data.loading import iterate_batches
from orthoproxy.losses import Objective
from orthoproxy.models import Encoder
from orthoproxy.training.checkpoint import TrainingState
from orthoproxy.training.job import Batch, FitOptions, Job, Log, Record
from orthoproxy.training.nonfinite import NonFiniteStepHandler, require_finite_weights
from orthoproxy.training.signals import Interrupted, Stop, StopNow, stop_on_signal


def fit(job: Job, state: TrainingState, run: Log) -> TrainingState:
    """Train until the last epoch, early stopping, or a signal; return the state at the end.

    With W processes, each embeds its part of the batch, gathers all embeddings and computes the loss L of the whole
    batch. The backward pass of the gather sums over the processes, so process r gets W dL/dX_r for its embeddings X_r;
    DDP averages the resulting weight gradients over the processes, which yields the gradient of L. The objective is
    not wrapped in DDP: its gradients are equal already and are averaged only to remove rounding differences.

    Parameters
    ----------
    job
        Model, objective, optimizer and data; trained in place. `Experiment` is one.
    state
        Where to continue; ``TrainingState()`` for the beginning.
    run
        Receives log records.

    Raises
    ------
    Interrupted
        After Ctrl-C or SIGTERM, with the run saved.
    DivergedError
        If weights are non-finite, or too many steps were; the last checkpoint has finite weights.
    InputError, WorkerLost
        If images cannot be read, with the run saved.
    """
    options, sampler = job.options, job.sampler
    forward, nonfinite = _Forward(job), NonFiniteStepHandler(job, run)
    with stop_on_signal() as stop, Progress("train", options.epochs * len(sampler), state.step) as progress:
        while state.epoch < options.epochs and not _out_of_patience(state, options):
            job.encoder.train()
            sampler.set_position(state.epoch, state.batch)
            meter = _Meter()
            batches = iterate_batches(job.loader)
            while (batch := _next_batch(batches, job, state, stop, meter, nonfinite, progress)) is not None:
                _set_learning_rates(job.optimizer, options, state.step)
                forward.prepare()
                nonfinite.save_buffers()
                losses = _forward_backward(forward, job, batch)
                if job.objective.sharded_loss is None:
                    average_gradients(job.objective.parameters())
                nonfinite.skip_if_nonfinite(losses, state)
                _clip_gradients(job.optimizer, job.objective, options)
                job.optimizer.step()
                job.optimizer.zero_grad()
                nonfinite.restore_buffers_if_skipped()
                if job.average is not None:
                    job.average.update_parameters(job.encoder)

                state.step += 1
                state.batch += 1
                meter.images += sum(sampler.sizes)
                if state.step % options.log_every_n_steps == 0 or state.batch == len(sampler):
                    skipped = nonfinite.report_skipped(state, progress)
                    if state.step not in skipped:
                        record = _training_record(losses, job.optimizer, state, meter)
                        _log(run, job.fabric, record)
                        progress.note = f"loss {record['loss']:.3f}  {meter.speed():.0f} images/s"
                progress.advance()

            nonfinite.finish_epoch(state)
            state.seconds += meter.lap()[1]  # since the last record
            state.epoch, state.batch = state.epoch + 1, 0
            require_finite_weights(job.encoder, job.objective, state)
            averaged = () if job.average is None else job.average.buffers()
            broadcast_([*job.encoder.buffers(), *averaged])  # batch-norm statistics differ between processes
            line = f"epoch {state.epoch}/{options.epochs}  {progress.note}"
            if state.epoch % options.validate_every_n_epochs == 0 or state.epoch == options.epochs:
                scores = _validate(job, stop, state)
                if scores is not None:
                    named = {f"validation/{name}": value for name, value in scores.items()}
                    _log(run, job.fabric, {"step": state.step, "epoch": state.epoch, **named})
                    if _update_best(scores[options.metric], state):
                        job.checkpoints.save("best", state)
                    line += f"  validation {options.metric} {100 * scores[options.metric]:.1f}"
            progress.say(line)
            job.checkpoints.save("last", state)
            if any_process(stop.requested):
                raise Interrupted(state.step, stop.signal)
    return state


def _next_batch(
    batches: Iterator[Batch],
    job: Job,
    state: TrainingState,
    stop: Stop,
    meter: _Meter,
    nonfinite: NonFiniteStepHandler,
    progress: Progress,
) -> Batch | None:
    """Return the next batch, None at the end of the epoch; save and raise on a signal or a read error."""
    batch, error = None, None
    try:
        batch = next(batches, None)
    except Exception as reason:  # any: the weights of the last step are saved first, then it is raised
        error = reason
    if any_process(stop.requested or error is not None):  # the only message between CPUs in a step
        state.seconds += meter.lap()[1]
        nonfinite.report_skipped(state, progress)
        if state.step > job.checkpoints.saved_step:
            require_finite_weights(job.encoder, job.objective, state)
            job.checkpoints.save("last", state)
        with raise_together():
            if error is not None:
                progress.say(f"saved after step {state.step}; the run can be resumed")
                raise error
        raise Interrupted(state.step, stop.signal)
    return batch


def _set_learning_rates(optimizer: torch.optim.Optimizer, options: FitOptions, step: int) -> None:
    """Set the learning rate of each group; the backbone gets no gradients while it is frozen."""
    factor = options.lr_factor(step)
    for group in optimizer.param_groups:
        group["lr"] = factor * group["peak_lr"]
        if group["name"] == "backbone":
            for parameter in group["params"]:
                parameter.requires_grad_(step >= options.freeze_backbone_steps)


class _Forward:
    """The encoder set up by Fabric: precision and, with several processes, DDP."""

    def __init__(self, job: Job) -> None:
        self.fabric = job.fabric
        bfloat16_on_cpu = job.fabric.device.type == "cpu" and job.fabric._precision.precision == "bf16-mixed"
        self.encoder = _EncoderInParts(job.encoder, job.options.gradient_accumulation_steps, not bfloat16_on_cpu)
        self.trained: list[bool] = []
        self.module: Any = None

    def prepare(self) -> None:
        """Set up the encoder; again when other parameters are trained, as DDP averages those it saw at first."""
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


class _EncoderInParts(nn.Module):
    """Embeds a batch in parts, each again in the backward pass, so that the activations of only one are in memory."""

    def __init__(self, encoder: Encoder, parts: int, fused_attention: bool) -> None:
        super().__init__()
        self.encoder, self.parts, self.fused_attention = encoder, parts, fused_attention

    def forward(self, images: Tensor) -> Tensor:
        parts = images.chunk(self.parts)
        if len(parts) == 1:
            return self._embed(images)
        # the first pass has updated the running statistics of batch norm, the second leaves them alone
        norms = [x for x in self.encoder.modules() if isinstance(x, _BatchNorm) and x.training]
        second_pass = partial(_changed, norms, momentum=0.0, num_batches_tracked=None)
        options: Any = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), second_pass())}
        return torch.cat([cast(Tensor, checkpoint(self._embed, part, **options)) for part in parts])

    def _embed(self, images: Tensor) -> Tensor:
        # PyTorch's fused attention has a slow backward pass in bfloat16 on CPUs; without it, matrix products are used
        modules = () if self.fused_attention else self.encoder.modules()
        with _changed([x for x in modules if getattr(x, "fused_attn", False)], fused_attn=False):
            return self.encoder(images)


@contextmanager
def _changed(modules: Sequence[nn.Module], **values: Any) -> Iterator[None]:
    """Change attributes of modules within the block."""
    before = [(module, name, getattr(module, name)) for module in modules for name in values]
    for module in modules:
        for name, value in values.items():
            setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def _forward_backward(forward: _Forward, job: Job, batch: Batch) -> dict[str, Tensor]:
    """Compute the loss of the whole batch and its gradients; DDP averages those of the encoder."""
    images, labels = job.fabric.to_device(batch)
    sizes = job.sampler.sizes
    own = sizes[process_index()]  # fewer than the images if this process has no part in the batch
    losses = job.objective(all_gather_rows(forward(images)[:own], sizes), all_gather_rows(labels[:own], sizes))
    job.fabric.backward(losses["loss"])
    return {name: value.detach() for name, value in losses.items()}


def _clip_gradients(optimizer: torch.optim.Optimizer, objective: Objective, options: FitOptions) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if options.grad_clip_norm is not None:
        shards = set() if objective.sharded_loss is None else set(objective.parameters())
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None and p not in shards])
        if shards:  # other processes hold the rest of the proxies
            squares = all_reduce_sum(get_total_norm([p.grad for p in shards if p.grad is not None]) ** 2)
            norm = (norm**2 + squares).sqrt()
        clip_grads_with_norm_(parameters, options.grad_clip_norm, norm)
    if options.grad_clip_value is not None:
        torch.nn.utils.clip_grad_value_(parameters, options.grad_clip_value)


class _Meter:
    """Throughput, over the epoch and since the last lap."""

    def __init__(self) -> None:
        self.images = self.lap_images = 0
        self.start = self.lap_start = time.monotonic()

    def speed(self) -> float:
        """Images per second in this epoch."""
        return self.images / max(time.monotonic() - self.start, 1e-9)

    def lap(self) -> tuple[float, float]:
        """Images per second, and seconds, since the last call."""
        now = time.monotonic()
        seconds, images = now - self.lap_start, self.images - self.lap_images
        self.lap_start, self.lap_images = now, self.images
        return images / max(seconds, 1e-9), seconds


def _training_record(
    losses: dict[str, Tensor], optimizer: torch.optim.Optimizer, state: TrainingState, meter: _Meter
) -> Record:
    values = torch.stack(list(losses.values())).tolist()  # at once, as each read waits for a GPU
    images_per_second, seconds = meter.lap()
    state.seconds += seconds
    return {
        "step": state.step,
        "epoch": state.epoch + 1,
        **dict(zip(losses, values, strict=True)),
        **{f"lr/{group['name']}": group["lr"] for group in optimizer.param_groups},
        "images_per_second": images_per_second,
        "seconds": state.seconds,
    }


def _log(run: Log, fabric: Fabric, record: Record) -> None:
    if is_main():
        run.log(record)
        fabric.log_dict({name: value for name, value in record.items() if name != "step"}, step=record["step"])


def _validate(job: Job, stop: Stop, state: TrainingState) -> dict[str, float] | None:
    """Validate; if interrupted, save the state after the epoch's last step, so that resuming validates it."""
    random = torch.get_rng_state()  # data loaders draw from it
    try:
        with stop.immediately() if process_count() == 1 else nullcontext():  # other processes would wait forever
            return job.validate()
    except (StopNow, InputError, WorkerLost, RemoteProcessError) as reason:  # all processes save together
        state.epoch, state.batch = state.epoch - 1, len(job.sampler)
        torch.set_rng_state(random)
        job.checkpoints.save("last", state)
        if not isinstance(reason, StopNow):
            raise
        raise Interrupted(state.step, stop.signal) from None


def _update_best(score: float, state: TrainingState) -> bool:
    """Record a validation score; return whether it is the best so far."""
    if score > state.best_score:
        state.best_score, state.best_epoch, state.validations_since_best = score, state.epoch, 0
        return True
    state.validations_since_best += 1
    return False


def _out_of_patience(state: TrainingState, options: FitOptions) -> bool:
    patience = options.early_stopping_patience
    return patience is not None and state.validations_since_best >= patience
