"""The widening of half precision, and the switching off of autocast."""

import pytest
import torch

from orthoproxy.losses.full_precision import at_least_float32


@pytest.mark.parametrize(("given", "other", "computed"), [
    (torch.float16, torch.bfloat16, torch.float32), (torch.float64, torch.float16, torch.float64),
    (torch.float32, torch.float64, torch.float64),
])  # fmt: skip
def test_all_floating_point_tensors_are_widened_to_one_type(given, other, computed) -> None:
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
