"""Several encoders as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from orthoproxy.models.encoder import Encoder


class MergedEncoder(nn.Module):
    """The embeddings of k encoders, concatenated, projected to D dimensions and normalized to unit length.

    The encoders take images of one size; backbones, dimensions and poolings may differ. The features are the
    concatenated embeddings over sqrt(k), whose cosine is the mean of the cosines of the encoders.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoders: Sequence[Encoder], embedding_dim: int | None = None) -> None:
        super().__init__()
        self.backbone: Any = nn.ModuleList(encoders)
        self.name = " + ".join(f"{x.name} ({x.pooling})" if x.pooling else x.name for x in encoders)
        self.image_size, self.pooling = encoders[0].image_size, None
        self.feature_dim = sum(x.embedding_dim for x in encoders)
        self.embedding_dim = embedding_dim or self.feature_dim
        self.projection = nn.Linear(self.feature_dim, self.embedding_dim, bias=False)
        for name in ("mean", "std"):  # for the identity; each encoder applies its own
            self.register_buffer(name, torch.cat([getattr(x, name) for x in encoders]), persistent=False)

    def features(self, images: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
        """Return the concatenated embeddings, of unit length."""
        return torch.cat([encoder(images) for encoder in self.backbone], dim=1) / len(self.backbone) ** 0.5

    def forward(self, images: Shaped[Tensor, "B 3 H W"] | Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        """Return unit-length embeddings of images or of their features."""
        embeddings = self.projection(images if images.ndim == 2 else self.features(images))
        return F.normalize(embeddings.float(), dim=1)
