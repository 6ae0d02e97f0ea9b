"""Losses and miners by name: the package's own and those of pytorch-metric-learning."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from orthoproxy.core.errors import InputError, did_you_mean
from orthoproxy.losses.proxy_anchor import ProxyAnchorLoss

OWN: dict[str, type[nn.Module]] = {"proxy_anchor": ProxyAnchorLoss}

# base classes, wrappers of other objects, and what takes no labels or other batches
UNSUPPORTED = {"BaseLossWrapper", "BaseMetricLossFunction", "GenericPairLoss", "BaseMiner", "BaseDistance"}
UNSUPPORTED |= {"EmbeddingRegularizerMixin", "WeightRegularizerMixin"}
UNSUPPORTED |= {"CrossBatchMemory", "MultipleLosses", "SelfSupervisedLoss", "BatchedDistance"}
UNSUPPORTED |= {"ManifoldLoss", "VICRegLoss", "EmbeddingsAlreadyPackagedAsTriplets"}
EMBEDDING_DIM = ("embedding_dim", "embedding_size", "descriptors_dim")  # what the losses call it
# arguments that take Python objects, which a configuration cannot name, or weigh such objects
OBJECTS = {"collect_stats", "reducer", "weight_init_func", "embedding_regularizer", "embedding_reg_weight"}
OBJECTS |= {"weight_regularizer", "weight_reg_weight"}


def loss_names() -> list[str]:
    """Return the names that `make_loss` accepts."""
    return [*OWN, *_library("losses", required=False)]


def make_loss(
    name: str, num_classes: int, embedding_dim: int, args: Mapping[str, Any] | None = None, shard_proxies: bool = False
) -> nn.Module:
    """Build a loss by name, called with (embeddings, labels).

    Parameters
    ----------
    name
        ``proxy_anchor``, or a class of `pytorch_metric_learning.losses`.
    num_classes, embedding_dim
        C and D; passed to losses with class vectors.
    args
        Other arguments of the loss. ``distance`` is a mapping: the ``name`` of a class of
        `pytorch_metric_learning.distances`, and its arguments.
    shard_proxies
        Divide the proxies among the processes.

    Raises
    ------
    InputError
        If the name or an argument does not exist or cannot be used.

    Examples
    --------
    >>> make_loss("proxy_anchor", num_classes=3, embedding_dim=8, args={"margin": 0.2})
    ProxyAnchorLoss(num_classes=3, embedding_dim=8, scale=32.0, margin=0.2)
    """
    if shard_proxies and name not in OWN:
        raise InputError(f"{name} cannot be sharded", field="shard_proxies", expected=f"false, or {', '.join(OWN)}")
    loss_class = OWN.get(name) or _find("name", name, OWN | _library("losses"))
    sizes = {"num_classes": num_classes, **dict.fromkeys(EMBEDDING_DIM, embedding_dim)}
    required = [name for name, parameter in _arguments(loss_class).items() if parameter.default is parameter.empty]
    filled = {argument: size for argument, size in sizes.items() if argument in required}
    if name in OWN:
        filled["sharded"] = shard_proxies
    return _construct("args", name, loss_class, args or {}, filled)


def make_miner(name: str, args: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a miner: `name` is a class of `pytorch_metric_learning.miners`; `args` and errors are as in `make_loss`.

    Examples
    --------
    >>> make_miner("MultiSimilarityMiner", {"epsilon": 0.2}).epsilon
    0.2
    """
    return _construct("args", name, _find("name", name, _library("miners")), args or {}, {})


def _library(part: str, required: bool = True) -> dict[str, type[nn.Module]]:
    """Return the supported classes of `pytorch_metric_learning.losses`, `.miners` or `.distances`."""
    try:
        module = importlib.import_module(f"pytorch_metric_learning.{part}")
    except ModuleNotFoundError as error:
        if not required:
            return {}
        problem = f"{part} other than {', '.join(OWN)} need pytorch-metric-learning, which is not installed"
        raise InputError(problem, field="name", hint="pip install 'orthoproxy[compare]'") from error
    classes: list[tuple[str, Any]] = inspect.getmembers(module, inspect.isclass)
    return {name: found for name, found in classes if name not in UNSUPPORTED}


def _find(field: str, name: str, classes: Mapping[str, type[nn.Module]]) -> type[nn.Module]:
    if name in classes:
        return classes[name]
    problem, hint = ("cannot be used", None) if name in UNSUPPORTED else ("unknown", did_you_mean(name, classes))
    raise InputError(f"{name!r} {problem}", field=field, expected=f"one of {', '.join(classes)}", hint=hint)


def _construct(
    field: str, name: str, module_class: type[nn.Module], args: Mapping[str, Any], filled: Mapping[str, int]
) -> nn.Module:
    allowed = sorted(set(_arguments(module_class)) - OBJECTS - set(filled))
    if unknown := [argument for argument in args if argument not in allowed]:
        problem = f"{name} has no such argument"
        if unknown[0] in filled:
            problem = f"{name} takes it from the data and other fields"
        elif unknown[0] in OBJECTS:
            problem = f"{name} takes or weighs a Python object here"
        expected, hint = ", ".join(allowed) or "no arguments", did_you_mean(unknown[0], allowed)
        raise InputError(problem, field=f"{field}.{unknown[0]}", expected=expected, hint=hint)
    if "distance" in args:
        args = {**args, "distance": _make_distance(f"{field}.distance", args["distance"])}
    try:
        return module_class(**args, **filled)
    except InputError as error:
        raise error.within(field) from error
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(f"{name} rejects {dict(args)}: {error or type(error).__name__}", field=field) from error


def _make_distance(field: str, given: Any) -> nn.Module:
    """Build a distance of pytorch-metric-learning from its name and arguments."""
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise InputError(f"{given!r}", field=field, expected="a name and arguments, as {name: LpDistance, power: 2}")
    args = {name: value for name, value in given.items() if name != "name"}
    return _construct(field, given["name"], _find(f"{field}.name", given["name"], _library("distances")), args, {})


def _arguments(module_class: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """Return the constructor's arguments by name, including those passed on to base classes."""
    return {
        name: parameter
        for base in reversed(module_class.__mro__)  # the class itself comes last and wins
        if "__init__" in vars(base) and base not in (object, nn.Module)
        for name, parameter in inspect.signature(base.__init__).parameters.items()
        if name != "self" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
