"""Deep metric learning with soft orthogonal proxies: train an image encoder for retrieval, and know how good it is.

What the command line does takes a few lines here: `train` a `Config` (`read_config` reads one from a recipe), `load` a
run's model and `embed` images with it, `evaluate` it on a table of images (`read_table`).
"""

from orthoproxy.core.errors import InputError
from orthoproxy.data import make_table
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.evaluation import evaluate
from orthoproxy.losses import ProxyAnchorLoss, SoftOrthogonality, proxy_anchor_loss, soft_orthogonality
from orthoproxy.runs.build import read_table
from orthoproxy.runs.config import Config
from orthoproxy.runs.recipes import read_config
from orthoproxy.runs.run_folder import Run
from orthoproxy.runs.train import train

load = Embedder.load

__all__ = [
    "Config",
    "Embedder",
    "InputError",
    "ProxyAnchorLoss",
    "Run",
    "SoftOrthogonality",
    "evaluate",
    "load",
    "make_table",
    "proxy_anchor_loss",
    "read_config",
    "read_table",
    "soft_orthogonality",
    "train",
]
