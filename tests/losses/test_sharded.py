"""Sharded proxies: the parts add up to the loss and gradients of one process, and each process keeps its part only."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from many import in_processes
from torch import Tensor, nn

from orthoproxy.core.distributed import all_gather_rows, gather_to_main, local_slice, split_sizes
from orthoproxy.losses import Objective, SoftOrthogonality, proxy_anchor, proxy_anchor_loss, soft_orthogonality
from orthoproxy.losses.proxy_anchor import ProxyAnchorLoss, proxy_anchor_part
from orthoproxy.losses.soft_orthogonality import distance_of_gram, gram_of_dims

Batch = tuple[Tensor, Tensor, Tensor]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    classes, batch, dim = draw(st.integers(1, 12)), draw(st.integers(1, 9)), draw(st.integers(2, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(batch, dim, dtype=torch.float64, generator=generator)
    p = torch.randn(classes, dim, dtype=torch.float64, generator=generator)
    return x, torch.randint(classes, (batch,), generator=generator), p


@given(batches(), st.integers(1, 5), st.sampled_from([1e-5, 16.0]))
def test_parts_of_proxy_anchor_sum_up_to_it_and_so_do_their_gradients(batch: Batch, parts: int, memory: float) -> None:
    x, labels, p = batch
    x.requires_grad_(), p.requires_grad_()
    whole = proxy_anchor_loss(x, labels, p)
    expected = torch.autograd.grad(whole, (x, p))
    total, first = torch.zeros(()), 0
    for size in split_sizes(len(p), parts):  # some are empty
        total = total + proxy_anchor_part(x, labels, p[first : first + size], first, len(p), 32.0, 0.1, memory)
        first += size
    torch.testing.assert_close(total, whole, rtol=1e-12, atol=1e-12)
    for value, whole in zip(torch.autograd.grad(total, (x, p)), expected, strict=True):
        torch.testing.assert_close(value, whole, rtol=1e-9, atol=1e-11)


@given(batches(), st.integers(1, 5), st.booleans(), st.sampled_from(["sum", "mean", "excess"]))
def test_gram_matrices_of_parts_give_the_orthogonality_of_all(batch: Batch, parts: int, unit: bool, scaling) -> None:
    p = torch.cat([batch[2], torch.ones(1, batch[2].shape[1])])  # at least two
    sizes = split_sizes(len(p), parts)
    gram = sum(gram_of_dims(part, unit) for part in p.split(sizes))
    value = distance_of_gram(gram, len(p), p.shape[1], unit, scaling)
    torch.testing.assert_close(value, soft_orthogonality(p, unit, scaling), rtol=1e-9, atol=1e-9)


def objective(classes: int, divided: bool) -> Objective:
    torch.manual_seed(0)
    term = SoftOrthogonality(scaling="excess")
    return Objective(ProxyAnchorLoss(classes, 4, sharded=divided), classes, term, weight=0.5).double()


def in_parts(classes: int, labels: list[int]) -> dict[str, Tensor]:
    """Compute loss and gradients; each process brings some of the images."""
    made, x, sizes = objective(classes, divided=True), images(len(labels)), split_sizes(len(labels))
    own = x[local_slice(sizes)].clone().requires_grad_()
    parts = made(all_gather_rows(own, sizes), all_gather_rows(torch.tensor(labels)[local_slice(sizes)], sizes))
    parts["loss"].backward()
    loss = made.sharded_loss
    assert loss is not None and own.grad is not None and loss.proxies.grad is not None
    return {
        **{name: part.detach() for name, part in parts.items()},
        "by_images": all_gather_rows(own.grad, sizes) / len(sizes),  # DDP's mean
        "by_proxies": gather_to_main(loss.proxies.grad, loss.sizes),
        "proxies": gather_to_main(loss.proxies.detach(), loss.sizes),
    }


def images(count: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((count, 4)))


@pytest.mark.parametrize(("count", "classes", "labels"), [
    (2, 7, [0, 1, 2, 3, 4, 5, 6, 0]),  # neither divides
    (4, 9, [8, 8, 7]),  # one process with positives, one without an image
    (4, 3, [0, 1, 2, 2, 1]),  # one without a proxy
    (2, 1, [0, 0]),
    (1, 7, [0, 6, 3]),
])  # fmt: skip
def test_processes_with_a_part_each_compute_the_loss_and_gradients_of_one(count: int, classes: int, labels: list[int]):
    whole, x = objective(classes, divided=False), images(len(labels)).requires_grad_()
    expected = whole(x, torch.tensor(labels))
    expected["loss"].backward()
    proxies = next(whole.parameters())
    several = in_processes(count, in_parts, classes, labels)
    for seen in several:
        for name, part in expected.items():
            torch.testing.assert_close(seen[name], part.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(seen["by_images"], x.grad, rtol=1e-9, atol=1e-12)
    assert torch.equal(several[0]["proxies"], proxies.detach())
    torch.testing.assert_close(several[0]["by_proxies"], proxies.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("classes", [3, 16, 100, 131])
def test_the_start_is_that_of_the_authors_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch, classes: int) -> None:
    monkeypatch.setattr(proxy_anchor, "BLOCK", 32)
    torch.manual_seed(0)
    expected, after = nn.init.kaiming_normal_(torch.empty(classes, 7), mode="fan_out"), torch.rand(1)
    for own in (range(classes), range(classes // 3, classes // 2)):
        torch.manual_seed(0)
        rows = proxy_anchor._rows_of_kaiming_normal(classes, 7, own)
        assert torch.equal(rows, expected[own.start : own.stop]) and torch.equal(torch.rand(1), after)
