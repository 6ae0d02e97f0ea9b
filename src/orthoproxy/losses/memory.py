"""A memory of past embeddings that a pair loss compares each batch with."""

from __future__ import annotations

import torch
from jaxtyping import Float, Integer
from pytorch_metric_learning.losses import CrossBatchMemory
from torch import Tensor, nn

from orthoproxy.core.errors import InputError


class EmbeddingMemory(CrossBatchMemory):
    """Cross-batch memory (Wang et al., CVPR 2020) of pytorch-metric-learning, with its position in a buffer."""

    position: Tensor  # next row, and whether all rows are in use

    def __init__(self, loss: nn.Module, embedding_dim: int, size: int, miner: nn.Module | None = None) -> None:
        name, supported = type(loss).__name__, self.supported_losses()
        if name not in supported:
            expected = f"null, or one of {', '.join(supported)} as the loss"
            raise InputError(f"{size}, but {name} compares no pairs", field="memory_size", expected=expected)
        super().__init__(loss, embedding_dim, size, miner)
        self.register_buffer("position", torch.zeros(2, dtype=torch.long))

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] -- fewer arguments
        self, embeddings: Float[Tensor, "B D"], labels: Integer[Tensor, " B"]
    ) -> Tensor:
        self.queue_idx, self.has_been_filled = self.position.tolist()  # as restored after a skipped step or a resume
        loss = super().forward(embeddings, labels)
        self.position.copy_(torch.tensor([self.queue_idx, self.has_been_filled]))
        return loss
