"""What training minimises: a metric-learning loss plus a weight times what keeps its class vectors apart."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from orthoproxy.core.errors import InputError
from orthoproxy.losses.sharded import ShardedProxyAnchorLoss

# where a loss keeps its class vectors, and whether as rows (C D) or, several centres a class allowed, columns (D C*K)
ROWS, COLUMNS = "rows", "columns"
CLASS_VECTORS = {
    "ProxyAnchorLoss": ("proxies", ROWS),
    "ProxyNCALoss": ("proxies", ROWS),
    "ArcFaceLoss": ("W", COLUMNS),
    "SubCenterArcFaceLoss": ("W", COLUMNS),
    "CosFaceLoss": ("W", COLUMNS),
    "SphereFaceLoss": ("W", COLUMNS),
    "LargeMarginSoftmaxLoss": ("W", COLUMNS),
    "NormalizedSoftmaxLoss": ("W", COLUMNS),
    "SoftTripleLoss": ("fc", COLUMNS),
    "P2SGradLoss": ("weight", COLUMNS),
}


TAKES_NO_MINER = {"InstanceLoss", "P2SGradLoss", "PNPLoss", "RankedListLoss"}


class Objective(nn.Module):
    """``loss(embeddings, labels) + weight * orthogonality(class vectors)``.

    Parameters
    ----------
    loss
        Called with (embeddings, labels); see `registry.make_loss`.
    num_classes
        C.
    orthogonality
        The regulariser: `SoftOrthogonality` or a rival, see `make_regulariser`; beside `ShardedProxyAnchorLoss`,
        `ShardedSoftOrthogonality`.
    weight
        lambda; 0 leaves the regulariser out of the sum, its value is reported all the same.
    miner
        Chooses pairs or triplets for a pytorch-metric-learning loss; or None.

    Raises
    ------
    InputError
        If the loss does not take a miner, or if the weight is not 0 and the loss has no class vectors.

    Examples
    --------
    >>> from orthoproxy.losses import ProxyAnchorLoss, SoftOrthogonality
    >>> objective = Objective(ProxyAnchorLoss(4, 8), num_classes=4, orthogonality=SoftOrthogonality(), weight=0.1)
    >>> parts = objective(torch.randn(6, 8), torch.tensor([0, 0, 1, 1, 2, 3]))
    >>> sorted(parts)
    ['loss', 'metric_loss', 'orthogonality']
    """

    def __init__(
        self,
        loss: nn.Module,
        num_classes: int,
        orthogonality: nn.Module,
        weight: float = 0.0,
        miner: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.loss, self.miner, self.orthogonality = loss, miner, orthogonality
        self.num_classes, self.weight = num_classes, weight
        name = type(loss).__name__
        self._home = next((CLASS_VECTORS[c.__name__] for c in type(loss).__mro__ if c.__name__ in CLASS_VECTORS), None)
        if self.sharded is not None:
            self._home = CLASS_VECTORS["ProxyAnchorLoss"]
        if miner is not None and (name in TAKES_NO_MINER or type(loss).__module__.startswith("orthoproxy.")):
            raise InputError(f"loss.miner: {name} uses every image of the batch and takes no miner; leave it out")
        if weight != 0 and self._home is None:
            raise InputError(
                f"loss.orthogonality.weight: {name} keeps no vector a class, so there is nothing to keep orthogonal; "
                f"set it to 0 or use one of {', '.join(CLASS_VECTORS)}"
            )

    @property
    def sharded(self) -> ShardedProxyAnchorLoss | None:
        """The loss, if it keeps the class vectors of this process only."""
        return self.loss if isinstance(self.loss, ShardedProxyAnchorLoss) else None

    def forward(self, embeddings: Float[Tensor, "B D"], labels: Int[Tensor, " B"]) -> dict[str, Tensor]:
        """Return ``loss`` (to minimise) and its parts ``metric_loss`` and, with class vectors, ``orthogonality``."""
        # pytorch-metric-learning casts its parameters to the embeddings' type: never let that be a half precision
        embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        with torch.autocast(embeddings.device.type, enabled=False):
            mined = () if self.miner is None else (self.miner(embeddings, labels),)
            parts = {"metric_loss": self.loss(embeddings, labels, *mined)}
            vectors = self.class_vectors()
            if vectors is not None:
                with torch.set_grad_enabled(torch.is_grad_enabled() and self.weight != 0):
                    parts["orthogonality"] = self.orthogonality(vectors)
        regulariser = self.weight * parts["orthogonality"] if self.weight != 0 else 0.0
        return {"loss": parts["metric_loss"] + regulariser, **parts}

    def class_vectors(self) -> Float[Tensor, "C D"] | None:
        """Return the vectors that stand for the classes, one a row; the mean of the centres where a class has several.

        Returns
        -------
        Tensor or None
            None for losses without class vectors, such as those on pairs and triplets. Of a sharded loss, the vectors
            of this process's classes.
        """
        if self._home is None:
            return None
        centres = self._centres()
        if self.sharded is not None:
            return centres
        return centres if len(centres) == self.num_classes else centres.unflatten(0, (self.num_classes, -1)).mean(dim=1)

    @torch.no_grad()
    def set_class_vectors(self, vectors: Float[Tensor, "C D"]) -> None:
        """Start the class vectors from given ones, for example class means.

        Parameters
        ----------
        vectors
            One a row. Where a class has several centres, each starts near its vector, apart by noise of a tenth of
            its length, since equal centres would stay equal. Of a sharded loss, those of this process's classes.
        """
        centres = self._centres()  # a view: writing to it writes to the parameter
        repeats = 1 if self.sharded is not None else len(centres) // self.num_classes
        started = vectors.to(centres).repeat_interleave(repeats, dim=0)
        if repeats > 1:
            noise = torch.randn_like(started) / started.shape[1] ** 0.5
            started = started + 0.1 * started.norm(dim=1, keepdim=True) * noise
        centres.copy_(started)

    def fix_class_vectors(self, vectors: Float[Tensor, "C D"]) -> None:
        """Give the class vectors and train them no more; `set_class_vectors` can still replace them.

        Parameters
        ----------
        vectors
            One a row.

        Raises
        ------
        InputError
            If the loss has no class vectors, or several centres a class.
        """
        name = type(self.loss).__name__
        if self._home is None:
            raise InputError(
                f"initialisation.proxies: {name} keeps no vector a class to be fixed; choose class_means, or one of "
                f"{', '.join(CLASS_VECTORS)}"
            )
        if len(self._centres()) != self.num_classes:
            raise InputError(
                f"initialisation.proxies: {name} keeps several centres a class, which cannot all be the same fixed "
                "vector; choose class_means, or one centre"
            )
        self.set_class_vectors(vectors)
        self._parameter().requires_grad_(False)

    def _parameter(self) -> nn.Parameter:
        assert self._home is not None
        return getattr(self.loss, self._home[0])

    def _centres(self) -> Float[Tensor, "CK D"]:
        assert self._home is not None
        parameter = self._parameter()
        return parameter if self._home[1] == ROWS else parameter.T
