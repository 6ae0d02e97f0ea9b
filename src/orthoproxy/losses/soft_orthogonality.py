"""Soft Orthogonality: keep the proxies as orthogonal to each other as their number and dimension allow."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from orthoproxy.losses.precision import at_least_float32, unit_rows

Form = Literal["auto", "classes", "dims"]
Scaling = Literal["sum", "mean", "excess"]


@at_least_float32
def soft_orthogonality(
    proxies: Float[Tensor, "C D"],
    normalize: bool = True,
    form: Form = "auto",
    scaling: Scaling = "sum",
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
    if scaling not in ("sum", "mean", "excess"):
        raise ValueError(f"scaling: unknown {scaling!r}; one of sum, mean, excess")
    num_classes, dim = proxies.shape
    if num_classes == 1:
        return (proxies * 0).sum()
    rows = unit_rows(proxies) if normalize else proxies
    in_dims = form == "dims" or (form == "auto" and num_classes > dim)
    gram = rows.T @ rows if in_dims else rows @ rows.T
    # ||P P^T - t I||^2 and ||P^T P - t I||^2 differ by t^2 (C - D) only: compute one, correct to the size asked for
    above_floor = scaling == "excess" and num_classes > dim
    shift = num_classes / dim if above_floor and normalize else 1.0
    correction = shift**2 * ((dim if above_floor else num_classes) - len(gram))
    distance = (gram - shift * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).square().sum()
    value = _not_below_zero(distance + correction)
    return value / {"sum": 1, "mean": num_classes * (num_classes - 1), "excess": num_classes}[scaling]


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
