"""What keeps class vectors apart, by name: Soft Orthogonality and its rivals."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn

from orthoproxy.core.errors import InputError
from orthoproxy.losses.nearest import koleo, mutual_coherence
from orthoproxy.losses.sharded import ShardedSoftOrthogonality
from orthoproxy.losses.soft_orthogonality import Form, Scaling, SoftOrthogonality, off_diagonal
from orthoproxy.losses.spectral import coding_rate_deficit, spectral_isometry

Kind = Literal["soft", "off_diagonal", "spectral", "coherence", "coding_rate", "koleo"]
FIELD = "loss.orthogonality"


class Regulariser(nn.Module):
    """A function of class vectors as a module, for `Objective`.

    Parameters
    ----------
    name
        To be shown when printed.
    function
        Takes the vectors, one a row, and returns a scalar to make small.

    Examples
    --------
    >>> import torch
    >>> lengths = Regulariser("lengths", lambda vectors: vectors.square().sum())
    >>> lengths, lengths(torch.eye(3))
    (Regulariser(lengths), tensor(3.))
    """

    def __init__(self, name: str, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.name, self.function = name, function

    def forward(self, proxies: Float[Tensor, "C D"]) -> Float[Tensor, ""]:
        """Return the term for class vectors, one a row."""
        return self.function(proxies)

    def extra_repr(self) -> str:
        """Show the name when printed."""
        return self.name


def make_regulariser(
    kind: Kind = "soft",
    normalize: bool = True,
    scaling: Scaling = "excess",
    form: Form = "auto",
    sharded_classes: int | None = None,
) -> nn.Module:
    """Build the term that keeps class vectors apart.

    Parameters
    ----------
    kind
        ``soft``: `SoftOrthogonality`. ``off_diagonal``, ``spectral``, ``coherence``, ``coding_rate``, ``koleo``: the
        rivals `off_diagonal`, `spectral_isometry`, `mutual_coherence`, `coding_rate_deficit` and `koleo`.
    normalize
        Scale to unit length first; both ways make sense for ``soft`` and ``spectral``, one way for each other.
    scaling, form
        As in `soft_orthogonality`; a ``scaling`` other than ``excess`` is for ``soft`` and ``off_diagonal`` only, a
        ``form`` other than ``auto`` for ``soft``.
    sharded_classes
        C, where the vectors are divided among the processes of the job; for ``soft`` only.

    Returns
    -------
    torch.nn.Module
        Called with class vectors, one a row.

    Raises
    ------
    InputError
        For a kind that does not exist, or options that it does not have.

    Examples
    --------
    >>> make_regulariser("koleo")
    Regulariser(koleo)
    >>> make_regulariser("koleo", normalize=False)
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: loss.orthogonality.normalize: koleo is of unit vectors; set it to true
    """
    _check(kind, normalize, scaling, form, sharded_classes is not None)
    if sharded_classes is not None:
        return ShardedSoftOrthogonality(sharded_classes, normalize, scaling)
    if kind == "soft":
        return SoftOrthogonality(normalize, form, scaling)
    functions: dict[Kind, Callable[[Tensor], Tensor]] = {
        "off_diagonal": partial(off_diagonal, scaling=scaling),
        "spectral": partial(spectral_isometry, normalize=normalize),
        "coherence": mutual_coherence,
        "coding_rate": coding_rate_deficit,
        "koleo": koleo,
    }
    return Regulariser(kind, functions[kind])


def _check(kind: Kind, normalize: bool, scaling: Scaling, form: Form, sharded: bool) -> None:
    if kind not in get_args(Kind):
        raise InputError(f"{FIELD}.kind: unknown {kind!r}; one of {', '.join(get_args(Kind))}")
    if kind == "off_diagonal" and normalize:
        raise InputError(f"{FIELD}.normalize: of unit vectors, off_diagonal is soft itself; set it to false")
    if kind in ("coherence", "coding_rate", "koleo") and not normalize:
        raise InputError(f"{FIELD}.normalize: {kind} is of unit vectors; set it to true")
    if kind not in ("soft", "off_diagonal") and scaling != "excess":
        raise InputError(f"{FIELD}.scaling: {kind} has one scale only; leave it out")
    if kind != "soft" and form != "auto":
        raise InputError(f"{FIELD}.form: {kind} is computed in one way only; leave it out")
    if kind != "soft" and sharded:
        raise InputError(
            f"{FIELD}.kind: {kind} needs all class vectors in one place, and loss.shard_proxies divides them among "
            "processes; use soft, or set loss.shard_proxies to false"
        )
