"""What is computed in parts: each as large as the memory given allows, and nothing of a size that is to be avoided."""

from collections.abc import Callable

import pytest
import torch
from recorded import Recorded

from orthoproxy.losses import proxy_anchor_loss, soft_orthogonality
from orthoproxy.losses.regularizers import koleo, mutual_coherence

ROWS = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12)
MIB = 2**20


def products(compute: Callable[[], object]) -> list[tuple[int, ...]]:
    """The shapes of all matrix products."""
    with Recorded() as seen:
        compute()
    return seen.products


@pytest.mark.parametrize("rows", [1, 10, 33])
def test_proxy_anchor_takes_as_many_proxies_as_fit(rows: int) -> None:
    memory = rows * 4 * 2 * (12 + 8) / MIB  # unit rows and their gradient, cosines and their gradient
    shapes = products(lambda: proxy_anchor_loss(ROWS[:12], LABELS, ROWS, memory_mb=memory))
    assert [min(rows, 100 - start) for start in range(0, 100, rows)] == [shape[0] for shape in shapes]


@pytest.mark.parametrize("rows", [1, 10, 33])
@pytest.mark.parametrize("measure", [mutual_coherence, koleo])
def test_the_nearest_are_looked_for_by_as_many_as_fit(measure: Callable, rows: int) -> None:
    shapes = products(lambda: measure(ROWS, memory_mb=rows * 4 * 100 / MIB))
    assert shapes == [(min(rows, 100 - start), 100) for start in range(0, 100, rows)]


@pytest.mark.parametrize("rows", [1, 10, 33])
def test_soft_orthogonality_adds_up_the_products_of_as_many_as_fit(rows: int) -> None:
    shapes = products(lambda: soft_orthogonality(ROWS, memory_mb=rows * 2 * 4 * 8 / MIB))
    assert shapes == [(8, 8)] * len(range(0, 100, rows))


@pytest.mark.parametrize("shape", [(30, 4), (4, 30)])
def test_soft_orthogonality_takes_the_smaller_matrix(shape: tuple[int, int]) -> None:
    assert set(products(lambda: soft_orthogonality(ROWS.view(-1)[:120].view(shape)))) == {(4, 4)}
