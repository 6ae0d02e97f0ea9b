"""Recipes of encoders: input normalization, pooling and rates, through the real loading code on random weights."""

from pathlib import Path

import pytest
import timm
import torch

from orthoproxy.models import load_weights
from orthoproxy.runs.experiment import make_encoder
from orthoproxy.runs.recipes import read_config

RECIPES = Path(__file__).parents[2] / "recipes"
IMAGENET, SYMMETRIC = [0.485, 0.456, 0.406], [0.5, 0.5, 0.5]
EXPECTED = {
    "dinov2": (IMAGENET, "token", 384),
    "dinov3": (IMAGENET, "token", 384),
    "siglip": (SYMMETRIC, "map", 768),
    "vit-in21k": (SYMMETRIC, "token", 384),
}


@pytest.mark.parametrize("path", sorted((RECIPES / "encoders").glob("*.yaml")), ids=lambda path: path.stem)
def test_published_weights_load_with_their_normalization_and_pooling(path: Path, monkeypatch) -> None:
    config = read_config(RECIPES / "icons.yaml", path).encoder
    published = timm.create_model(config.name)  # at its own image size, random weights
    encoder = make_encoder(config)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: published)  # else it would download
    load_weights(encoder, config.init_from)
    mean, pooling, width = EXPECTED[path.stem]
    assert encoder.mean.flatten().tolist() == pytest.approx(mean)
    assert (encoder.backbone.global_pool, encoder.feature_dim) == (pooling, width)
    block = encoder.backbone.blocks[0].mlp.fc1.weight
    assert torch.equal(block, published.blocks[0].mlp.fc1.weight)
    assert timm.get_pretrained_cfg(config.name).has_weights
