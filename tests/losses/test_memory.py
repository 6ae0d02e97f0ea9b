"""The memory of past embeddings."""

import pytest
import torch
from errors import error_of
from pytorch_metric_learning.losses import ContrastiveLoss
from torch.nn.functional import normalize

from orthoproxy.losses import ProxyAnchorLoss
from orthoproxy.losses.memory import EmbeddingMemory


def reference(batch, labels, past, past_labels):
    """Contrastive loss over all pairs of a batch with itself, own rows left out, and with past embeddings."""
    x, y = torch.cat([batch, past]), torch.cat([labels, past_labels])
    distances = (batch[:, None] - x[None]).norm(dim=2)
    same, own = labels[:, None] == y[None], torch.eye(len(batch), len(x), dtype=torch.bool)
    positive, negative = distances[same & ~own], (1 - distances[~same]).clamp(min=0)
    return sum(part[part > 0].mean() if (part > 0).any() else 0.0 for part in (positive, negative))


def test_a_batch_is_compared_with_itself_and_the_latest_embeddings():
    generator = torch.Generator().manual_seed(0)
    memory = EmbeddingMemory(ContrastiveLoss(), embedding_dim=3, size=9)
    rows = normalize(torch.randn(5, 4, 3, generator=generator), dim=2)  # five batches of four
    labels = torch.randint(0, 3, (5, 4), generator=generator)
    for step in range(5):
        first = max(0, 4 * step - 5)  # of the five past embeddings for which there is room
        past, past_labels = rows.reshape(20, 3)[first : 4 * step], labels.reshape(20)[first : 4 * step]
        if step == 3:  # resume
            saved = memory.state_dict()
            memory = EmbeddingMemory(ContrastiveLoss(), embedding_dim=3, size=9)
            memory.load_state_dict(saved)
        before = {name: buffer.clone() for name, buffer in memory.named_buffers()}
        memory(rows[0], labels[0])
        for name, buffer in memory.named_buffers():  # a skipped step
            buffer.copy_(before[name])
        loss = memory(rows[step], labels[step])
        assert loss.item() == pytest.approx(float(reference(rows[step], labels[step], past, past_labels)), rel=1e-4)


def test_losses_with_proxies_have_no_memory():
    assert error_of(EmbeddingMemory, ProxyAnchorLoss(3, 8), 8, 16).field == "memory_size"
