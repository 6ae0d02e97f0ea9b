"""Losses and miners by name: the project's own, and pytorch-metric-learning's for comparison."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from torch import nn

from orthoproxy.core.errors import InputError
from orthoproxy.losses.proxy_anchor import ProxyAnchorLoss
from orthoproxy.losses.sharded import ShardedProxyAnchorLoss

OWN = {"proxy_anchor": ProxyAnchorLoss}
SHARDED = {"proxy_anchor": ShardedProxyAnchorLoss}

_ABSTRACT = "it is a base class without a formula of its own"
_WRAPPER = "it wraps another loss object instead of taking (embeddings, labels) settings from a recipe"
REFUSED = {
    "BaseLossWrapper": _ABSTRACT,
    "BaseMetricLossFunction": _ABSTRACT,
    "GenericPairLoss": _ABSTRACT,
    "EmbeddingRegularizerMixin": _ABSTRACT,
    "WeightRegularizerMixin": _ABSTRACT,
    "CrossBatchMemory": _WRAPPER,
    "MultipleLosses": _WRAPPER,
    "SelfSupervisedLoss": _WRAPPER,
    "ManifoldLoss": "it draws its own proxies, unrelated to the classes, and takes no labels",
    "VICRegLoss": "it compares two views of each image and takes no labels",
    "BaseMiner": _ABSTRACT,
    "EmbeddingsAlreadyPackagedAsTriplets": "it expects batches already laid out as triplets",
    "BaseDistance": _ABSTRACT,
    "BatchedDistance": "it wraps another distance object instead of taking settings from a recipe",
}
# what the data and the encoder decide, under the names that the losses give it
SIZES = {
    "num_classes": "num_classes",
    "embedding_dim": "embedding_dim",
    "embedding_size": "embedding_dim",
    "descriptors_dim": "embedding_dim",
}
# arguments that take Python objects, which a recipe cannot name, or weigh such objects
OBJECTS = {
    "collect_stats",
    "embedding_reg_weight",
    "embedding_regularizer",
    "reducer",
    "weight_init_func",
    "weight_reg_weight",
    "weight_regularizer",
}


def loss_names() -> list[str]:
    """Return the names that `make_loss` accepts: the project's own first, then what pytorch-metric-learning offers.

    Examples
    --------
    >>> loss_names()[0]
    'proxy_anchor'
    """
    return [*OWN, *_offered(_library("losses", required=False))]


def make_loss(
    name: str, num_classes: int, embedding_dim: int, args: Mapping[str, Any] | None = None, sharded: bool = False
) -> nn.Module:
    """Build the loss of that name, called with (embeddings, labels).

    Parameters
    ----------
    name
        ``proxy_anchor``, or a class of `pytorch_metric_learning.losses`.
    num_classes, embedding_dim
        C and D; handed to losses that keep a vector a class.
    args
        The loss's other settings. ``distance`` is a mapping: the ``name`` of a class of
        `pytorch_metric_learning.distances`, and its settings.
    sharded
        Divide the proxies among the processes of the job.

    Returns
    -------
    torch.nn.Module
        Freshly initialised.

    Raises
    ------
    InputError
        For a name or an argument that does not exist or cannot be used, with the reason and what there is.

    Examples
    --------
    >>> make_loss("proxy_anchor", num_classes=3, embedding_dim=8, args={"margin": 0.2})
    ProxyAnchorLoss(num_classes=3, embedding_dim=8, scale=32.0, margin=0.2)
    >>> squared = {"name": "LpDistance", "power": 2}
    >>> make_loss("TripletMarginLoss", num_classes=3, embedding_dim=8, args={"distance": squared}).distance.power
    2
    """
    sizes = {"num_classes": num_classes, "embedding_dim": embedding_dim}
    if sharded and name not in SHARDED:
        raise InputError(
            f"loss.shard_proxies: {name} cannot be divided among processes, only {', '.join(SHARDED)} can; "
            "set it to false, or loss.name to that"
        )
    loss_class = (SHARDED if sharded else OWN).get(name) or _find("loss.name", name, _library("losses"), extra=OWN)
    required = [name for name, parameter in _arguments(loss_class).items() if parameter.default is parameter.empty]
    filled = {argument: sizes[size] for argument, size in SIZES.items() if argument in required}
    return _construct("loss.args", name, loss_class, args or {}, filled)


def make_miner(name: str, args: Mapping[str, Any] | None = None) -> nn.Module:
    """Build the miner of that name, a class of `pytorch_metric_learning.miners`.

    Parameters
    ----------
    name
        The class's name.
    args
        Its settings; ``distance`` as in `make_loss`.

    Returns
    -------
    torch.nn.Module
        Called with (embeddings, labels), it returns the tuple of indices that pytorch-metric-learning's losses take.

    Raises
    ------
    InputError
        As for `make_loss`.

    Examples
    --------
    >>> make_miner("MultiSimilarityMiner", {"epsilon": 0.2}).epsilon
    0.2
    """
    return _construct("loss.miner.args", name, _find("loss.miner.name", name, _library("miners")), args or {}, {})


def _library(part: str, required: bool = True) -> ModuleType | None:
    """Import `pytorch_metric_learning.losses`, `.miners` or `.distances`, installed by the extra `compare`."""
    try:
        import pytorch_metric_learning.distances
        import pytorch_metric_learning.losses
        import pytorch_metric_learning.miners
    except ModuleNotFoundError as error:
        if not required:
            return None
        raise InputError(
            f"loss: apart from {', '.join(OWN)}, losses and miners come from pytorch-metric-learning, which is not "
            "installed;\nrun: pip install 'orthoproxy[compare]'"
        ) from error
    return getattr(pytorch_metric_learning, part)


def _offered(library: ModuleType | None) -> list[str]:
    classes = inspect.getmembers(library, inspect.isclass) if library else []
    return [name for name, _ in classes if name not in REFUSED]


def _find(field: str, name: str, library: ModuleType | None, extra: Iterable[str] = ()) -> type[nn.Module]:
    offered = [*extra, *_offered(library)]
    if name in REFUSED:
        raise InputError(f"{field}: {name} cannot be used: {REFUSED[name]}; there are {', '.join(offered)}")
    if name not in offered:
        raise InputError(f"{field}: unknown {name!r}{_did_you_mean(name, offered)}; there are {', '.join(offered)}")
    return getattr(library, name)


def _construct(
    field: str, name: str, module_class: type[nn.Module], args: Mapping[str, Any], filled: Mapping[str, int]
) -> nn.Module:
    allowed = sorted(set(_arguments(module_class)) - OBJECTS - set(filled))
    for argument in args:
        if argument in filled:
            raise InputError(f"{field}: {argument} of {name} follows from the data and the encoder; leave it out")
        if argument in OBJECTS:
            raise InputError(
                f"{field}: {argument} of {name} takes or weighs a Python object, which a recipe cannot name; "
                f"it takes {', '.join(allowed) or 'no arguments'}"
            )
        if argument not in allowed:
            raise InputError(
                f"{field}: {name} has no {argument!r}{_did_you_mean(argument, allowed)}; it takes "
                f"{', '.join(allowed) or 'no arguments'}"
            )
    if "distance" in args:
        args = {**args, "distance": _make_distance(f"{field}.distance", args["distance"])}
    try:
        return module_class(**args, **filled)
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(f"{field}: {name} refuses {dict(args)}: {error or type(error).__name__}") from error


def _make_distance(field: str, given: Any) -> nn.Module:
    """Build a distance of pytorch-metric-learning from its name and settings."""
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise InputError(f"{field}: must be a name and settings, such as {{name: LpDistance, power: 2}}, not {given!r}")
    settings = {name: value for name, value in given.items() if name != "name"}
    return _construct(field, given["name"], _find(f"{field}.name", given["name"], _library("distances")), settings, {})


def _arguments(module_class: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """The constructor's arguments by name, those passed on to base classes included."""
    return {
        name: parameter
        for base in reversed(module_class.__mro__)  # what a class itself says of an argument comes last and counts
        if "__init__" in vars(base) and base not in (object, nn.Module)
        for name, parameter in inspect.signature(base.__init__).parameters.items()
        if name != "self" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def _did_you_mean(name: str, choices: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, choices, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
