"""The training loop, data-driven initialization, and checkpoints."""

from orthoproxy.training.initialization import class_means, pca_projection, second_moment
from orthoproxy.training.job import FitOptions
from orthoproxy.training.loop import fit
from orthoproxy.training.optimizer import make_optimizer

__all__ = ["FitOptions", "class_means", "fit", "make_optimizer", "pca_projection", "second_moment"]
