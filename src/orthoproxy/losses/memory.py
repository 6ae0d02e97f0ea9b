"""A memory of past embeddings that a pair loss compares each batch with."""

from __future__ import annotations

from pytorch_metric_learning.losses import CrossBatchMemory
from torch import nn, tensor

from orthoproxy.core.errors import InputError


class EmbeddingMemory(CrossBatchMemory):
    """Cross-batch memory (Wang et al., CVPR 2020) of pytorch-metric-learning, whose state dict has its position too."""

    def __init__(self, loss: nn.Module, embedding_dim: int, size: int, miner: nn.Module | None = None) -> None:
        name, supported = type(loss).__name__, self.supported_losses()
        if name not in supported:
            expected = f"null, or one of {', '.join(supported)} as the loss"
            raise InputError(f"{size}, but {name} compares no pairs", field="memory_size", expected=expected)
        super().__init__(loss, embedding_dim, size, miner)

    def get_extra_state(self) -> object:
        return tensor([self.queue_idx, self.has_been_filled])

    def set_extra_state(self, state: object) -> None:
        position, filled = state.tolist()  # pyright: ignore[reportAttributeAccessIssue]
        self.queue_idx, self.has_been_filled = position, bool(filled)
