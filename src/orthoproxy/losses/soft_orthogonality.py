"""Soft Orthogonality: keep the proxies as orthogonal to each other as their number and dimension allow."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from orthoproxy.core.distributed import all_reduce_sum
from orthoproxy.core.errors import InputError
from orthoproxy.losses.full_precision import at_least_float32, row_lengths, unit_rows

Scaling = Literal["sum", "mean", "excess"]


@at_least_float32
def soft_orthogonality(
    proxies: Float[Tensor, "C D"], normalize: bool = True, scaling: Scaling = "sum", memory_mb: float = 16.0
) -> Float[Tensor, ""]:
    r"""Penalize proxies that are not orthogonal: ``||P P^T - I||_F^2``, with one proxy per row of P.

    Computed through the smaller of ``P P^T`` (C x C) and ``P^T P`` (D x D), by
    ``||P P^T - I||^2 = ||P^T P - I||^2 + C - D``, in float32 or better whatever the autocast. 0 for a single proxy.

    Parameters
    ----------
    proxies
        P, shape (C, D).
    normalize
        Scale the rows to unit length first, so that only angles count. A row of zeros stays zero, with gradient 0.
    scaling
        ``sum``: as published. ``mean``: divided by C (C - 1), the number of ordered pairs. ``excess``: what lies above
        the minimum that C vectors in D dimensions can reach, divided by C. With unit rows and C >= D the minimum is
        the Welch bound ``C^2 / D - C``, and the excess is ``||P^T P - (C / D) I||^2 / C``; with unit rows and C < D
        the minimum is 0; without normalization it is ``max(0, C - D)``.
    memory_mb
        Bound in MiB on the temporary memory of the D x D form; changes no result beyond rounding.

    Raises
    ------
    InputError
        If the scaling is unknown.

    References
    ----------
    Bansal et al., NeurIPS 2018, arXiv 1810.09102; applied to proxies by "Deep Metric Learning with Soft Orthogonal
    Proxies", 2023, arXiv 2306.13055.

    Examples
    --------
    >>> soft_orthogonality(torch.ones(3, 2))  # three equal rows: six ordered pairs of similarity 1
    tensor(6.0000)
    >>> soft_orthogonality(torch.ones(3, 2), scaling="mean")
    tensor(1.0000)
    """
    num_classes, dim = proxies.shape
    scale_divisor(scaling, num_classes)  # also checks a single proxy's scaling
    if num_classes == 1:
        return (proxies * 0).sum()
    return distance_of_gram(smaller_gram(proxies, normalize, memory_mb), num_classes, dim, normalize, scaling)


def smaller_gram(proxies: Float[Tensor, "C D"], normalize: bool, memory_mb: float = 16.0) -> Float[Tensor, "r r"]:
    """Return P^T P or P P^T, whichever is smaller; their nonzero eigenvalues are the same."""
    if len(proxies) > proxies.shape[1]:
        return gram_of_dims(proxies, normalize, memory_mb)
    rows = unit_rows(proxies) if normalize else proxies
    return rows @ rows.T


def gram_of_dims(proxies: Float[Tensor, "C D"], normalize: bool, memory_mb: float = 16.0) -> Float[Tensor, "D D"]:
    """Return ``P^T P``, of the unit rows if asked for; parts of the proxies add up to the whole."""
    return cast(Tensor, _GramOfDims.apply(proxies, normalize, memory_mb))


def distance_of_gram(
    gram: Float[Tensor, "n n"], num_classes: int, dim: int, normalize: bool, scaling: Scaling
) -> Float[Tensor, ""]:
    """Compute `soft_orthogonality` from ``P P^T`` or ``P^T P``, whichever has been passed."""
    # computed for the given Gram matrix: ||P P^T - t I||^2 = ||P^T P - t I||^2 + t^2 (C - D)
    above_floor = scaling == "excess" and num_classes > dim
    shift = num_classes / dim if above_floor and normalize else 1.0
    correction = shift**2 * ((dim if above_floor else num_classes) - len(gram))
    distance = (gram - shift * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).square().sum()
    value = distance if correction == 0 else not_below_zero(distance + correction)
    return value / scale_divisor(scaling, num_classes)


def scale_divisor(scaling: Scaling, num_classes: int) -> int:
    """Return what a sum over all ordered pairs is divided by."""
    divisors = {"sum": 1, "mean": num_classes * (num_classes - 1), "excess": num_classes}
    if scaling not in divisors:
        raise InputError(f"unknown {scaling!r}", field="scaling", expected="sum, mean or excess")
    return divisors[scaling]


def not_below_zero(value: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Lift what rounding pushed below zero; the gradient stays that of `value`."""
    return value + torch.where(value < 0, -value, 0.0).detach()


class _GramOfDims(torch.autograd.Function):
    """``P^T P``, of the unit rows if asked for, some rows at a time; no copy of P is kept for the backward pass.

    With dG the gradient of the result, that of a row p is ``p (dG + dG^T)``. If rows are scaled to unit length u, it is
    ``(g - (g . u) u) / |p|`` with ``g = u (dG + dG^T)``.
    """

    @staticmethod
    def forward(ctx: Any, proxies: Float[Tensor, "C D"], normalize: bool, memory_mb: float) -> Float[Tensor, "D D"]:
        ctx.save_for_backward(proxies)
        ctx.normalize, ctx.memory_mb = normalize, memory_mb
        gram = proxies.new_zeros(proxies.shape[1], proxies.shape[1])
        for part in _parts(proxies, memory_mb):
            rows = unit_rows(part) if normalize else part
            gram.addmm_(rows.T, rows)
        return gram

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_gram: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (proxies,) = ctx.saved_tensors
        both = grad_gram[0] + grad_gram[0].T
        grad_proxies = torch.empty_like(proxies)
        for part, grad_part in zip(_parts(proxies, ctx.memory_mb), _parts(grad_proxies, ctx.memory_mb), strict=True):
            length = row_lengths(part) if ctx.normalize else 1.0
            rows = part / length
            torch.mm(rows, both, out=grad_part)
            if ctx.normalize:
                radial = (grad_part * rows).sum(dim=1, keepdim=True)
                grad_part.addcmul_(rows, radial, value=-1).div_(length)
        return grad_proxies, None, None


def _parts(rows: Float[Tensor, "C D"], memory_mb: float) -> tuple[Float[Tensor, "c D"], ...]:
    """Split rows into parts of which two copies fit the memory."""
    return rows.split(max(1, int(memory_mb * 2**20 / (2 * rows.element_size() * rows.shape[1]))))


class SoftOrthogonality(nn.Module):
    """`soft_orthogonality` as a module, with its `normalize` and `scaling`, for use beside a loss with proxies.

    Examples
    --------
    >>> SoftOrthogonality(scaling="excess")(torch.eye(2).repeat(3, 1))  # six proxies in two dimensions, evenly spread
    tensor(0.)
    """

    def __init__(self, normalize: bool = True, scaling: Scaling = "sum") -> None:
        super().__init__()
        scale_divisor(scaling, 2)  # checks the scaling
        self.normalize = normalize
        self.scaling: Scaling = scaling

    @at_least_float32
    def forward(self, proxies: Float[Tensor, "c D"], num_classes: int | None = None) -> Float[Tensor, ""]:
        """Return the penalty of proxies, one per row.

        `num_classes` is the number C of all proxies if each process passes a part of them. The processes then exchange
        only the D x D matrix ``P^T P``, the sum of those of their parts, and each returns the whole penalty.
        """
        if num_classes is None:
            return soft_orthogonality(proxies, self.normalize, self.scaling)
        if num_classes == 1:
            return (proxies * 0).sum()
        gram = all_reduce_sum(gram_of_dims(proxies, self.normalize))
        return distance_of_gram(gram, num_classes, proxies.shape[1], self.normalize, self.scaling)

    def extra_repr(self) -> str:
        return f"normalize={self.normalize}, scaling={self.scaling!r}"
