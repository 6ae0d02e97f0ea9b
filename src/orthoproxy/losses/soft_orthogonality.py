"""Soft Orthogonality: keep the proxies as orthogonal to each other as their number and dimension allow."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from orthoproxy.losses.full_precision import at_least_float32, row_lengths, unit_rows

Form = Literal["auto", "classes", "dims"]
Scaling = Literal["sum", "mean", "excess"]


@at_least_float32
def soft_orthogonality(
    proxies: Float[Tensor, "C D"],
    normalize: bool = True,
    form: Form = "auto",
    scaling: Scaling = "sum",
    memory_mb: float = 16.0,
) -> Float[Tensor, ""]:
    r"""Measure how far the proxies are from being orthogonal: ``||P P^T - I||_F^2``, P having one proxy a row.

    Parameters
    ----------
    proxies
        P, one row a class.
    normalize
        Scale the rows to unit length first, so that only the angles count. A row of zeros stays zero, with gradient 0.
    form
        How the same number is computed. ``classes``: through the C x C matrix of similarities ``P P^T``. ``dims``:
        through the D x D matrix ``P^T P``, by ``||P P^T - I||^2 = ||P^T P - I||^2 + C - D``. ``auto``: the smaller.
    scaling
        ``sum``: as published. ``mean``: divided by C (C - 1), the number of ordered pairs. ``excess``: what lies above
        the least value that C vectors in D dimensions can reach, divided by C. With unit rows and C >= D that least
        value is the Welch bound ``C^2 / D - C``, and the excess is ``||P^T P - (C / D) I||^2 / C``; unnormalised it is
        ``max(0, C - D)``; unit rows with C < D can reach 0.
    memory_mb
        Bound on the memory of what the form ``dims`` computes at a time, in MiB; changes no result beyond rounding.

    Returns
    -------
    Tensor
        A scalar, 0 or more, float32 or float64; 0 for a single proxy, which has no other to be orthogonal to.

    Raises
    ------
    ValueError
        For an unknown form or scaling.

    References
    ----------
    Bansal et al., "Can We Gain More from Orthogonality Regularizations in Training Deep CNNs?", NeurIPS 2018;
    applied to proxies by "Deep Metric Learning with Soft Orthogonal Proxies", 2023, arXiv 2306.13055. Derivation of
    the dual form and of the excess: docs/method.md.

    Examples
    --------
    >>> soft_orthogonality(torch.eye(3))
    tensor(0.)
    >>> soft_orthogonality(torch.ones(3, 2))  # three equal rows: six ordered pairs of similarity 1
    tensor(6.0000)
    >>> soft_orthogonality(torch.ones(3, 2), scaling="mean")
    tensor(1.0000)
    """
    if form not in ("auto", "classes", "dims"):
        raise ValueError(f"form: unknown {form!r}; one of auto, classes, dims")
    _divisor(scaling, len(proxies))
    num_classes, dim = proxies.shape
    if num_classes == 1:
        return (proxies * 0).sum()
    in_dims = form == "dims" or (form == "auto" and num_classes > dim)
    if in_dims:
        gram = gram_of_dims(proxies, normalize, memory_mb)
    else:
        rows = unit_rows(proxies) if normalize else proxies
        gram = rows @ rows.T
    return distance_of_gram(gram, num_classes, dim, normalize, scaling)


@at_least_float32
def off_diagonal(proxies: Float[Tensor, "C D"], scaling: Scaling = "sum", memory_mb: float = 16.0) -> Float[Tensor, ""]:
    r"""Measure the similarities of different proxies only: ``sum over i != j of (p_i . p_j)^2``.

    That is ``||P P^T||_F^2`` without its diagonal, where `soft_orthogonality` without normalisation also draws the
    lengths to 1. Nothing keeps the lengths here, so that shorter proxies lower the value as well as wider angles; a
    loss that looks at angles only does not mind. With unit rows it is `soft_orthogonality` itself, which is why there
    is no option for them. Computed through ``||P^T P||_F^2 - sum of ||p_i||^4`` where C > D, without a C x C matrix.

    Parameters
    ----------
    proxies
        P, one row a class, as long as they are.
    scaling
        ``sum``; ``mean``: divided by C (C - 1); ``excess``: divided by C, since the least value is 0.
    memory_mb
        As in `soft_orthogonality`.

    Returns
    -------
    Tensor
        A scalar, 0 or more, float32 or float64; 0 for a single proxy.

    Raises
    ------
    ValueError
        For an unknown scaling.

    References
    ----------
    The diagonal is left out by Brock et al., "Large Scale GAN Training for High Fidelity Natural Image Synthesis", ICLR
    2019, arXiv 1809.11096.

    Examples
    --------
    >>> off_diagonal(torch.tensor([[2.0, 0.0], [0.0, 3.0]]))  # orthogonal, of whatever length
    tensor(0.)
    >>> off_diagonal(torch.ones(3, 2))  # six ordered pairs of similarity 2
    tensor(24.)
    """
    divisor = _divisor(scaling, len(proxies))
    if len(proxies) == 1:
        return (proxies * 0).sum()
    if len(proxies) > proxies.shape[1]:
        everything = gram_of_dims(proxies, False, memory_mb).square().sum()
        return _not_below_zero(everything - proxies.square().sum(dim=1).square().sum()) / divisor
    gram = proxies @ proxies.T
    return (gram - gram.diagonal().diag()).square().sum() / divisor


def gram_of_dims(proxies: Float[Tensor, "C D"], normalize: bool, memory_mb: float = 16.0) -> Float[Tensor, "D D"]:
    """Compute ``P^T P``, of the unit rows if asked for. Over all proxies, those of parts of them sum up to it.

    Parameters
    ----------
    proxies, normalize, memory_mb
        As in `soft_orthogonality`; there may be none.

    Examples
    --------
    >>> gram_of_dims(torch.tensor([[2.0, 0.0], [0.0, 3.0]]), normalize=True)
    tensor([[1., 0.],
            [0., 1.]])
    """
    gram = _GramOfDims.apply(proxies, normalize, memory_mb)
    assert isinstance(gram, Tensor)
    return gram


def distance_of_gram(
    gram: Float[Tensor, "n n"], num_classes: int, dim: int, normalize: bool, scaling: Scaling
) -> Float[Tensor, ""]:
    """Compute `soft_orthogonality` from ``P P^T`` or ``P^T P``.

    Parameters
    ----------
    gram
        Either; its size and `num_classes` tell which.
    num_classes, dim
        C, at least 2, and D.
    normalize, scaling
        As in `soft_orthogonality`.

    Examples
    --------
    >>> distance_of_gram(3 * torch.eye(2), num_classes=6, dim=2, normalize=True, scaling="excess")
    tensor(0.)
    """
    # ||P P^T - t I||^2 and ||P^T P - t I||^2 differ by t^2 (C - D) only: compute one, correct to the size asked for
    above_floor = scaling == "excess" and num_classes > dim
    shift = num_classes / dim if above_floor and normalize else 1.0
    correction = shift**2 * ((dim if above_floor else num_classes) - len(gram))
    distance = (gram - shift * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).square().sum()
    value = distance if correction == 0 else _not_below_zero(distance + correction)
    return value / _divisor(scaling, num_classes)


def _divisor(scaling: Scaling, num_classes: int) -> int:
    """What a sum over all pairs is divided by."""
    divisors = {"sum": 1, "mean": num_classes * (num_classes - 1), "excess": num_classes}
    if scaling not in divisors:
        raise ValueError(f"scaling: unknown {scaling!r}; one of sum, mean, excess")
    return divisors[scaling]


class _GramOfDims(torch.autograd.Function):
    """``P^T P``, of the unit rows if asked for, a part of the rows at a time: no copy of P is kept for the way back.

    With dG the derivative by the result, that by a row p is ``p (dG + dG^T)``. If p is u at unit length, what points
    along u is taken away from it, and the rest divided by the length.
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
    def backward(ctx: Any, *by_gram: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (proxies,) = ctx.saved_tensors
        both = by_gram[0] + by_gram[0].T
        by_proxies = torch.empty_like(proxies)
        parts = zip(_parts(proxies, ctx.memory_mb), _parts(by_proxies, ctx.memory_mb), strict=True)
        for part, by_part in parts:
            if ctx.normalize:
                length = row_lengths(part)
                units = part / length
                torch.mm(units, both, out=by_part)
                along = (by_part * units).sum(dim=1, keepdim=True)
                by_part.addcmul_(units, along, value=-1).div_(length)
            else:
                torch.mm(part, both, out=by_part)
        return by_proxies, None, None


def _parts(rows: Float[Tensor, "C D"], memory_mb: float) -> tuple[Float[Tensor, "c D"], ...]:
    """Cut rows into parts of which two copies fit the memory given."""
    return rows.split(max(1, int(memory_mb * 2**20 / (2 * rows.element_size() * rows.shape[1]))))


def _not_below_zero(value: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Lift what rounding pushed below zero; the gradient stays that of `value`."""
    return value + torch.where(value < 0, -value, 0.0).detach()


class SoftOrthogonality(nn.Module):
    """`soft_orthogonality` with its settings, for use beside a loss with proxies.

    Parameters
    ----------
    normalize, form, scaling
        As in `soft_orthogonality`.

    Examples
    --------
    >>> SoftOrthogonality(scaling="excess")(torch.eye(2).repeat(3, 1))  # six proxies in two dimensions, evenly spread
    tensor(0.)
    """

    def __init__(self, normalize: bool = True, form: Form = "auto", scaling: Scaling = "sum") -> None:
        super().__init__()
        self.normalize = normalize
        self.form: Form = form
        self.scaling: Scaling = scaling

    def forward(self, proxies: Float[Tensor, "C D"]) -> Float[Tensor, ""]:
        """Return the term for proxies, one a row."""
        return soft_orthogonality(proxies, self.normalize, self.form, self.scaling)

    def extra_repr(self) -> str:
        """Show the settings when printed."""
        return f"normalize={self.normalize}, form={self.form!r}, scaling={self.scaling!r}"
