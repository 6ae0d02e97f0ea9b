"""One training loop, the data-driven start, and checkpoints."""

from orthoproxy.training.checkpoint import Checkpoints, Position
from orthoproxy.training.initialise import class_means, principal_weight
from orthoproxy.training.loop import Interrupted, Plan, fit
from orthoproxy.training.optimisation import make_optimizer, rate_factor

__all__ = [
    "Checkpoints",
    "Interrupted",
    "Plan",
    "Position",
    "class_means",
    "fit",
    "make_optimizer",
    "principal_weight",
    "rate_factor",
]
