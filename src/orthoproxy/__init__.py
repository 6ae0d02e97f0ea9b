"""Deep metric learning with soft orthogonal proxies: train an image encoder for retrieval and evaluate it honestly.

`train` a `Config` (`read_config` reads one from a recipe), `load` the model of a run and `embed` images with it,
`evaluate` it on a table of images (`read_table`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orthoproxy.core.lazy import lazy_imports

if TYPE_CHECKING:
    from orthoproxy.core.errors import DivergedError, InputError
    from orthoproxy.data import make_table
    from orthoproxy.embedding.embedder import Embedder
    from orthoproxy.evaluation import evaluate
    from orthoproxy.losses import ProxyAnchorLoss, SoftOrthogonality, proxy_anchor_loss, soft_orthogonality
    from orthoproxy.runs.config import Config
    from orthoproxy.runs.dataset import read_table
    from orthoproxy.runs.recipes import read_config
    from orthoproxy.runs.run_folder import RunFolder
    from orthoproxy.runs.train import train

    load = Embedder.load

__all__ = [
    "Config",
    "DivergedError",
    "Embedder",
    "InputError",
    "ProxyAnchorLoss",
    "RunFolder",
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

# names are imported on first use, so that the command line answers without loading PyTorch
_MODULES = {
    "Config": "runs.config",
    "DivergedError": "core.errors",
    "Embedder": "embedding.embedder",
    "InputError": "core.errors",
    "ProxyAnchorLoss": "losses",
    "RunFolder": "runs.run_folder",
    "SoftOrthogonality": "losses",
    "evaluate": "evaluation",
    "make_table": "data",
    "proxy_anchor_loss": "losses",
    "read_config": "runs.recipes",
    "read_table": "runs.dataset",
    "soft_orthogonality": "losses",
    "train": "runs.train",
}


_import_name = lazy_imports(__name__, _MODULES)


def __getattr__(name: str) -> Any:
    return _import_name("Embedder").load if name == "load" else _import_name(name)


def __dir__() -> list[str]:
    return __all__
