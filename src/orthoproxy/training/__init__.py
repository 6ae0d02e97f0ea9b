"""The training loop, data-driven initialization, and checkpoints."""

from orthoproxy.training.checkpoint import Checkpoints, TrainingState
from orthoproxy.training.initialization import class_means, pca_projection, second_moment
from orthoproxy.training.job import FitOptions, Job
from orthoproxy.training.loop import fit
from orthoproxy.training.optimizer import make_optimizer
from orthoproxy.training.signals import Interrupted

__all__ = [
    "Checkpoints",
    "FitOptions",
    "Interrupted",
    "Job",
    "TrainingState",
    "class_means",
    "fit",
    "make_optimizer",
    "pca_projection",
    "second_moment",
]
