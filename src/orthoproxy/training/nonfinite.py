"""Skip steps with non-finite loss or gradients, on the device; fail when there are too many."""

from __future__ import annotations

import copy
import csv
import math

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import get_total_norm

from orthoproxy.core.distributed import all_reduce_sum, is_main, raise_together
from orthoproxy.core.errors import DivergedError
from orthoproxy.core.progress import Progress
from orthoproxy.losses import Objective
from orthoproxy.models import Encoder
from orthoproxy.training.checkpoint import TrainingState
from orthoproxy.training.job import Job, Log

HINT = "lower the learning rates or make the loss less extreme; the last checkpoint is finite"


class NonFiniteStepHandler:
    """Skips non-finite steps without waiting for the device, and counts them at every log record.

    The fused optimizer leaves weights and moments alone where its ``found_inf`` is 1. Images of skipped steps are
    listed in ``nonfinite_steps.csv`` beside the checkpoints.
    """

    def __init__(self, job: Job, run: Log) -> None:
        self.job, self.run = job, run
        self.limit = job.options.max_nonfinite_steps
        self.total = self.skipped_in_epoch = 0
        self.pending: list[tuple[int, int, Tensor]] = []  # step, batch, flag
        self.buffers: list[tuple[Tensor, Tensor]] = []
        self.flag = torch.zeros(())
        self.csv = job.checkpoints.folder / "nonfinite_steps.csv"

    def save_buffers(self) -> None:
        """Copy buffers that a forward pass changes: batch-norm statistics in training mode, a miner's memory."""
        norms = (m for m in self.job.encoder.modules() if isinstance(m, _BatchNorm) and m.training)
        changing = [*(b for norm in norms for b in norm.buffers()), *self.job.objective.buffers()]
        self.buffers = [(buffer, buffer.clone()) for buffer in changing]

    def skip_if_nonfinite(self, losses: dict[str, Tensor], state: TrainingState) -> None:
        """Tell the optimizer to skip the next step if the loss or a gradient is not finite in any process."""
        parameters = [p for group in self.job.optimizer.param_groups for p in group["params"]]
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        flag = 1.0 - (losses["loss"].isfinite() & norm.to(losses["loss"].device).isfinite()).float()
        self.flag = all_reduce_sum(flag).clamp(max=1.0)
        self.job.optimizer.found_inf = self.flag  # pyright: ignore[reportAttributeAccessIssue]
        self.pending.append((state.step + 1, state.batch, self.flag))

    def restore_buffers_if_skipped(self) -> None:
        """Undo what a skipped step did to buffers."""
        for buffer, before in self.buffers:
            buffer.copy_(torch.where(self.flag.to(buffer.device) > 0, before, buffer))

    def report_skipped(self, state: TrainingState, progress: Progress) -> set[int]:
        """Log and return the steps skipped since the last call; DivergedError if too many or weights not finite."""
        if not self.pending:
            return set()
        flags = torch.stack([flag for *_, flag in self.pending]).tolist()
        skipped = [entry[:2] for entry, flag in zip(self.pending, flags, strict=True) if flag > 0]
        self.pending = []
        if not skipped:
            return set()
        require_finite_weights(self.job.encoder, self.job.objective, state)
        self.skipped_in_epoch += len(skipped)
        for step, batch in skipped:
            self.total += 1
            files = self._files(state.epoch, batch)
            with raise_together():
                if is_main():
                    self.csv.parent.mkdir(parents=True, exist_ok=True)
                    with self.csv.open("a", encoding="utf-8", errors="surrogateescape", newline="") as file:
                        csv.writer(file).writerows((step, name) for name in files)
                    self.run.log({"step": step, "epoch": state.epoch + 1, "nonfinite_steps": self.total})
            examples = ", ".join(files[:3]) + f" and {len(files) - 3} more" * (len(files) > 3)
            progress.say(
                f"warning: skipped step {step}, loss or gradients not finite ({self.total} of at most {self.limit}): "
                f"{examples}"
            )
        if self.total > self.limit:
            self.job.checkpoints.save("last", state)
            raise DivergedError(
                f"loss or gradients not finite in {self.total} steps (at most {self.limit} are allowed). "
                f"Hint: check the images in {self.csv}, or lower the learning rates"
            )
        return {step for step, _ in skipped}

    def finish_epoch(self, state: TrainingState) -> None:
        """Raise `DivergedError` if every step of the epoch was skipped."""
        if self.skipped_in_epoch == len(self.job.sampler):
            raise DivergedError(f"no finite loss in the epoch that ends at step {state.step}. Hint: {HINT}")
        self.skipped_in_epoch = 0

    def _files(self, epoch: int, batch: int) -> list[str]:
        """The images of a batch, over all processes."""
        files = getattr(self.job.loader.dataset, "files", None)
        if files is None:
            return []
        whole = copy.copy(self.job.sampler)
        whole.rank, whole.world_size = 0, 1
        whole.set_position(epoch, batch)
        return [str(files[row]) for row, _ in next(iter(whole))]


def require_finite_weights(encoder: Encoder, objective: Objective, state: TrainingState) -> None:
    """Raise `DivergedError` in all processes if a weight is not finite in one."""
    weights = [p for p in (*encoder.parameters(), *objective.parameters()) if p.numel()]
    with raise_together():
        if not get_total_norm(weights, norm_type=math.inf).isfinite():  # read at once, as each read waits for a GPU
            raise DivergedError(f"weights not finite at step {state.step}. Hint: {HINT}")
