"""Unit rows, the widening of half precision, and the switching off of autocast."""

from __future__ import annotations

import pytest
import torch

from orthoproxy.losses.full_precision import at_least_float32, unit_rows


def test_unit_rows_have_length_one_and_keep_their_direction() -> None:
    rows = torch.randn(20, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e3
    units = unit_rows(rows)
    torch.testing.assert_close(units.norm(dim=1), torch.ones(20, dtype=torch.float64))
    torch.testing.assert_close(units * rows.norm(dim=1, keepdim=True), rows)
    assert torch.autograd.gradcheck(unit_rows, rows.requires_grad_())


def test_a_zero_row_stays_zero_with_gradient_zero_and_leaves_the_others_alone() -> None:
    rows = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 2.0]], dtype=torch.float64, requires_grad=True)
    unit_rows(rows).sum().backward()
    assert torch.equal(rows.grad[0], torch.zeros(3, dtype=torch.float64))
    alone = rows[1:].detach().requires_grad_()
    unit_rows(alone).sum().backward()
    assert torch.equal(rows.grad[1:], alone.grad)
    assert alone.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("given", "other", "computed"),
    [
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.float64, torch.float16, torch.float64),
        (torch.float32, torch.float64, torch.float64),
    ],
)
def test_all_floating_point_tensors_are_widened_to_one_type(
    given: torch.dtype, other: torch.dtype, computed: torch.dtype
) -> None:
    seen = {}

    @at_least_float32
    def loss(first: torch.Tensor, labels: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        seen.update(first=first.dtype, labels=labels.dtype, second=second.dtype)
        seen["product"] = (first @ second).dtype  # a matrix product is what autocast would narrow
        return first.sum()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss(torch.ones(2, 2, dtype=given), torch.ones(2, dtype=torch.int32), second=torch.ones(2, 2, dtype=other))
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16  # autocast is on again afterwards
    assert seen == {"first": computed, "second": computed, "product": computed, "labels": torch.int32}
