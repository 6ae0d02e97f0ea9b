"""Parameter groups and the learning rate schedule."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orthoproxy.losses import Objective, ProxyAnchorLoss, SoftOrthogonality
from orthoproxy.training import make_optimizer
from orthoproxy.training.optimizer import lr_factor


def test_every_parameter_is_in_one_group_and_decayed_unless_a_bias_norm_position_token_or_proxy(tiny_encoder):
    objective = Objective(ProxyAnchorLoss(3, 8), 3, SoftOrthogonality())
    optimizer = make_optimizer(tiny_encoder, objective, 1e-5, 1e-4, 1e-2, weight_decay=0.1)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(groups)
    tokens = [id(tiny_encoder.backbone.pos_embed), id(tiny_encoder.backbone.cls_token)]
    parts = (tiny_encoder.backbone, tiny_encoder.projection, objective)
    for part, name, lr in zip(parts, ("backbone", "projection", "proxies"), (1e-5, 1e-4, 1e-2), strict=True):
        for parameter in part.parameters():
            decays = parameter.ndim > 1 and name != "proxies" and id(parameter) not in tokens
            group = groups[id(parameter)]
            assert (group["name"], group["lr"], group["weight_decay"]) == (name, lr, 0.1 if decays else 0.0)


def test_layer_decay_lowers_the_learning_rate_towards_the_input(tiny_encoder):
    optimizer = make_optimizer(tiny_encoder, ProxyAnchorLoss(3, 8), 1e-3, 1e-4, 1e-2, 0.1, layer_decay=0.5)
    lrs = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    backbone, depth = tiny_encoder.backbone, len(tiny_encoder.backbone.blocks)
    assert {lrs[id(p)] for p in backbone.norm.parameters()} == {1e-3}
    for number, block in enumerate(backbone.blocks):
        assert {lrs[id(p)] for p in block.parameters()} == {1e-3 * 0.5 ** (depth - 1 - number)}
    assert lrs[id(backbone.pos_embed)] == 1e-3 * 0.5**depth
    assert {lrs[id(p)] for p in tiny_encoder.projection.parameters()} == {1e-4}


@given(st.integers(1, 500), st.integers(0, 100), st.sampled_from(["cosine", "step", "constant"]), st.integers(1, 50))
def test_the_factor_rises_in_the_warm_up_and_never_after(total, warmup, schedule, every):
    factors = [lr_factor(step, total, warmup, schedule, every, 0.5) for step in range(total)]
    assert all(0 <= factor <= 1 for factor in factors)
    rising, falling = factors[:warmup], factors[warmup:]
    assert rising == sorted(rising) and falling == sorted(falling, reverse=True)


def test_each_schedule_at_known_steps():
    assert lr_factor(55, 100, 10, "cosine") == pytest.approx(0.5)
    assert lr_factor(9, 100, 10, "cosine") == 1.0
    assert lr_factor(99, 100, 0, "cosine") == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))
    assert [lr_factor(step, 30, 0, "step", 10, 0.25) for step in (9, 10, 20)] == [1.0, 0.25, 0.0625]
    assert lr_factor(99, 100, 0, "constant") == 1.0
