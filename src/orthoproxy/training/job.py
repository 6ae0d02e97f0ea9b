"""What `fit` takes: a job and its options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from orthoproxy.data import BatchSampler
from orthoproxy.losses import Objective
from orthoproxy.models import Encoder
from orthoproxy.training.checkpoint import Checkpoints

Batch = Sequence[Tensor]  # pixels (or features) and class indices
Record = dict[str, Any]


@dataclass(frozen=True)
class FitOptions:
    """Options of `fit`.

    Parameters
    ----------
    epochs
        Passes over the training images.
    gradient_accumulation_steps
        Parts in which a batch is embedded, twice each, to hold the activations of one part only. Loss and gradients are
        those of the whole batch (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
        2021), except with batch-norm layers in training mode.
    lr_factor
        Maps the step to the factor of the peak learning rates.
    freeze_backbone_steps
        Steps at the beginning in which the backbone is not trained.
    grad_clip_norm, grad_clip_value
        Maximum gradient norm and element, or None.
    validate_every_n_epochs
        Epochs between validations; the last epoch is always validated.
    metric
        Validation metric that selects the best checkpoint.
    early_stopping_patience
        Validations without improvement before training stops; None disables it.
    log_every_n_steps
        Steps between log records. A GPU is synchronized with the CPU only then.
    max_nonfinite_steps
        Steps with a non-finite loss or gradient to skip before training fails.
    """

    epochs: int
    gradient_accumulation_steps: int = 1
    lr_factor: Callable[[int], float] = lambda step: 1.0
    freeze_backbone_steps: int = 0
    grad_clip_norm: float | None = None
    grad_clip_value: float | None = None
    validate_every_n_epochs: int = 1
    metric: str = "map@r"
    early_stopping_patience: int | None = None
    log_every_n_steps: int = 10
    max_nonfinite_steps: int = 10


@runtime_checkable
class Job(Protocol):
    """What `fit` trains, and with what."""

    fabric: Fabric
    encoder: Encoder
    average: AveragedModel | None  # of the encoder's weights over the steps
    objective: Objective
    optimizer: torch.optim.Optimizer
    loader: DataLoader
    sampler: BatchSampler
    checkpoints: Checkpoints
    options: FitOptions

    def validate(self) -> dict[str, float] | None:
        """Return the same scores in every process, or None if there are no validation classes."""


@runtime_checkable
class Log(Protocol):
    """Where records go: a run folder."""

    def log(self, record: Record) -> None:
        """Append a record; called in the main process only."""
