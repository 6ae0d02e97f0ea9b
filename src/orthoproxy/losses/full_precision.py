"""Losses are computed in float32 or better, whatever the autocast around them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

LossFunction = TypeVar("LossFunction", bound=Callable[..., Tensor])


def at_least_float32(loss: LossFunction) -> LossFunction:
    """Make a function cast its floating-point tensors to one type of 32 bits or more, and disable autocast inside."""

    @functools.wraps(loss)
    def in_full_precision(*args: Any, **kwargs: Any) -> Tensor:
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.is_floating_point()]
        dtype = functools.reduce(torch.promote_types, (x.dtype for x in tensors), torch.float32)

        def widen(x: Any) -> Any:
            return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

        with torch.autocast(tensors[0].device.type, enabled=False):
            return loss(*map(widen, args), **{name: widen(value) for name, value in kwargs.items()})

    return in_full_precision  # pyright: ignore[reportReturnType] -- wraps() keeps the signature


def unit_rows(x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """Scale rows to length 1; zeros stay, with gradient 0, which `torch.nn.functional.normalize` multiplies by 1e12."""
    return x / row_lengths(x)


def row_lengths(x: Float[Tensor, "N D"]) -> Float[Tensor, "N 1"]:
    """Return the lengths of rows as divisors: infinite for a row of zeros, so that it stays zero."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return length.masked_fill(length == 0, torch.inf)
