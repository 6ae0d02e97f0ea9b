"""What is computed in parts: each as large as the memory given allows, and nothing of a size that is to be avoided."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from recorded import Recorded

from orthoproxy.losses import proxy_anchor_loss, soft_orthogonality
from orthoproxy.losses.regularizers import koleo, mutual_coherence

ROWS = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12)
MIB = 2**20


def products(compute: Callable[[], object]) -> list[tuple[int, ...]]:
    with Recorded() as seen:
        compute()
    return seen.products


@pytest.mark.parametrize("rows", [1, 10, 33])
def test_a_part_has_as_many_rows_as_fit(rows: int) -> None:
    parts, row = [min(rows, 100 - start) for start in range(0, 100, rows)], rows * 4 / MIB
    memory = row * 2 * (12 + 8)  # unit rows and their gradient, cosines and their gradient
    shapes = products(lambda: proxy_anchor_loss(ROWS[:12], LABELS, ROWS, memory_mb=memory))
    assert [shape[0] for shape in shapes] == parts
    for measure in (mutual_coherence, koleo):
        assert products(partial(measure, ROWS, memory_mb=row * 100)) == [(part, 100) for part in parts]
    assert products(lambda: soft_orthogonality(ROWS, memory_mb=row * 2 * 8)) == [(8, 8)] * len(parts)


@pytest.mark.parametrize("shape", [(30, 4), (4, 30)])
def test_soft_orthogonality_takes_the_smaller_matrix(shape: tuple[int, int]) -> None:
    assert set(products(lambda: soft_orthogonality(ROWS.view(-1)[:120].view(shape)))) == {(4, 4)}
