"""One training loop, the data-driven start, and checkpoints."""

from orthoproxy.training.checkpoint import Checkpoints, Position, has_checkpoint
from orthoproxy.training.initialization import class_means, principal_weight
from orthoproxy.training.loop import Diverged, Interrupted, Plan, fit
from orthoproxy.training.optimizer import make_optimizer, rate_factor

__all__ = [
    "Checkpoints",
    "Diverged",
    "Interrupted",
    "Plan",
    "Position",
    "class_means",
    "fit",
    "has_checkpoint",
    "make_optimizer",
    "principal_weight",
    "rate_factor",
]
