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
    """Make a loss function widen its floating-point tensors to one common type and switch autocast off inside.

    Parameters
    ----------
    loss
        A function whose first argument is a tensor.

    Returns
    -------
    Callable
        The same function; tensors in half precision reach it as float32, and all as float64 where one is.

    Examples
    --------
    >>> at_least_float32(torch.sum)(torch.ones(2, dtype=torch.bfloat16)).dtype
    torch.float32
    """

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
    """Scale each row to length 1; a row of zeros stays zero and gets gradient 0.

    Parameters
    ----------
    x
        Float32 or float64. (`torch.nn.functional.normalize` would multiply a zero row's gradient by 1e12.)

    Returns
    -------
    Tensor
        Rows of length 1 or 0.

    Examples
    --------
    >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    return x / row_lengths(x)


def row_lengths(x: Float[Tensor, "N D"]) -> Float[Tensor, "N 1"]:
    """Return the lengths of rows to divide by: infinite for a row of zeros, which so stays zero, and its gradient too.

    Parameters
    ----------
    x
        Float32 or float64.

    Examples
    --------
    >>> row_lengths(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[5.],
            [inf]])
    """
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return length.masked_fill(length == 0, torch.inf)
