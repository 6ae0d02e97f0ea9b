"""The training objective: a metric-learning loss plus a weighted regularizer of its class vectors."""

from __future__ import annotations

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from orthoproxy.core.errors import InputError
from orthoproxy.losses.proxy_anchor import ProxyAnchorLoss, class_numbers
from orthoproxy.losses.soft_orthogonality import SoftOrthogonality

# the parameter that holds a loss's class vectors: `proxies` as rows (C D), the others as columns (D C*K, K centers per
# class)
CLASS_VECTORS = {
    "ProxyAnchorLoss": "proxies",
    "ProxyNCALoss": "proxies",
    "ArcFaceLoss": "W",
    "SubCenterArcFaceLoss": "W",
    "CosFaceLoss": "W",
    "SphereFaceLoss": "W",
    "LargeMarginSoftmaxLoss": "W",
    "NormalizedSoftmaxLoss": "W",
    "SoftTripleLoss": "fc",
    "P2SGradLoss": "weight",
}
TAKES_NO_MINER = {"InstanceLoss", "P2SGradLoss", "PNPLoss", "RankedListLoss"}


class Objective(nn.Module):
    """``loss(embeddings, labels) + weight * regularizer(class vectors)``.

    Parameters
    ----------
    loss
        Called with (embeddings, labels); see `make_loss`.
    num_classes
        C.
    regularizer
        A regularizer of class vectors; see `make_regularizer`.
    weight
        With 0 the regularizer is only reported.
    miner
        Selects pairs or triplets for a pytorch-metric-learning loss; or None.

    Raises
    ------
    InputError
        If the loss takes no miner, the weight is not 0 and the loss has no class vectors, or the loss is sharded and
        the regularizer is not `SoftOrthogonality`.

    Examples
    --------
    >>> from orthoproxy.losses import ProxyAnchorLoss, SoftOrthogonality
    >>> objective = Objective(ProxyAnchorLoss(4, 8), num_classes=4, regularizer=SoftOrthogonality(), weight=0.1)
    >>> sorted(objective(torch.randn(6, 8), torch.tensor([0, 0, 1, 1, 2, 3])))
    ['loss', 'metric_loss', 'regularizer']
    """

    def __init__(
        self,
        loss: nn.Module,
        num_classes: int,
        regularizer: nn.Module,
        weight: float = 0.0,
        miner: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.loss, self.miner, self.regularizer = loss, miner, regularizer
        self.num_classes, self.weight = num_classes, weight
        name, bases = type(loss).__name__, [base.__name__ for base in type(loss).__mro__]
        self._parameter = next((CLASS_VECTORS[base] for base in bases if base in CLASS_VECTORS), "")
        if miner is not None and (name in TAKES_NO_MINER or type(loss).__module__.startswith("orthoproxy.")):
            raise InputError(f"{name} uses every image of the batch and takes no miner", field="miner", expected="none")
        if weight != 0 and not self._parameter:
            problem = f"{weight:g}, but {name} has no vector per class to regularize"
            hint = f"or use one of {', '.join(CLASS_VECTORS)}"
            raise InputError(problem, field="weight", expected="0", hint=hint)
        if self.sharded_loss is not None and not isinstance(regularizer, SoftOrthogonality):
            problem = f"{regularizer} needs the class vectors of all processes, and the loss is sharded"
            raise InputError(problem, field="regularizer", expected="soft_orthogonality")

    @property
    def sharded_loss(self) -> ProxyAnchorLoss | None:
        """The loss, if it holds only the class vectors of this process."""
        return self.loss if isinstance(self.loss, ProxyAnchorLoss) and self.loss.sharded else None

    def forward(self, embeddings: Float[Tensor, "B D"], labels: Integer[Tensor, " B"]) -> dict[str, Tensor]:
        """Return ``loss``, to minimize, ``metric_loss`` and, with class vectors, ``regularizer`` without its weight."""
        labels = class_numbers(labels)
        # pytorch-metric-learning casts its parameters to the embeddings' type: never let that be half precision
        embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        with torch.autocast(embeddings.device.type, enabled=False):
            mined = () if self.miner is None else (self.miner(embeddings, labels),)
            parts = {"metric_loss": self.loss(embeddings, labels, *mined)}
            vectors = self.class_vectors()
            if vectors is not None:
                with torch.set_grad_enabled(torch.is_grad_enabled() and self.weight != 0):
                    of_part = {} if self.sharded_loss is None else {"num_classes": self.num_classes}
                    parts["regularizer"] = self.regularizer(vectors, **of_part)
        penalty = self.weight * parts["regularizer"] if self.weight != 0 else 0.0
        return {"loss": parts["metric_loss"] + penalty, **parts}

    def class_vectors(self) -> Float[Tensor, "C D"] | None:
        """Return one vector per class, the mean of its centers if it has several; None for losses without any.

        A sharded loss returns those of this process's classes.
        """
        if not self._parameter:
            return None
        centers = self._centers()
        return centers if self._centers_per_class() == 1 else centers.unflatten(0, (self.num_classes, -1)).mean(dim=1)

    @torch.no_grad()
    def set_class_vectors(self, vectors: Float[Tensor, "C D"]) -> None:
        """Set the class vectors, in a sharded loss those of this process's classes.

        The centers of a class get noise of a tenth of their length, since equal centers would stay equal.
        """
        repeats = self._centers_per_class()
        initial = vectors.to(self._centers()).repeat_interleave(repeats, dim=0)
        if repeats > 1:
            noise = torch.randn_like(initial) / initial.shape[1] ** 0.5
            initial = initial + 0.1 * initial.norm(dim=1, keepdim=True) * noise
        self._centers().copy_(initial)  # a view of the parameter

    def _centers_per_class(self) -> int:
        return 1 if self.sharded_loss is not None else len(self._centers()) // self.num_classes

    def _centers(self) -> Float[Tensor, "CK D"]:
        parameter = getattr(self.loss, self._parameter)
        return parameter if self._parameter == "proxies" else parameter.T
