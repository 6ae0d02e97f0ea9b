"""DeiT: it trains from a file of the authors, and the published weights are worth having."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image

import orthoproxy
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.models import Encoder, load_weights

EPOCHS = 6
ROOT = Path(__file__).parents[2]
FILE = "data/weights/deit_tiny_patch16_224.safetensors"
WEIGHTS = next((path for path in (ROOT / FILE, ROOT.parent / "shared" / FILE) if path.is_file()), None)


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve classes of four images: stripes of a width, direction and colors, somewhere else each time."""
    root = tmp_path_factory.mktemp("stripes")
    generator = np.random.default_rng(0)
    for number in range(12):
        width, colors = 6 + 3 * number, generator.integers(256, size=(2, 3))
        (root / str(number)).mkdir()
        for copy in range(4):
            place = np.mgrid[:200, :260][number % 2] + generator.integers(100)
            Image.fromarray(colors[place // width % 2].astype(np.uint8)).save(root / str(number) / f"{copy}.jpg")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deit_small_patch16_224", "deit_small_distilled_patch16_224"])
def test_a_deit_trains_at_224_pixels_with_falling_loss(name: str, stripes: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save({"model": timm.create_model(name).state_dict()}, tmp_path / "deit.pth")
    config = orthoproxy.Config().with_overrides({
        "data": {"name": "folder", "root": str(stripes), "test_fraction": 0.33, "workers": 0},
        "encoder": {"name": name, "init_from": str(tmp_path / "deit.pth")},
        "sampler": {"batch_size": 32, "images_per_class": 4},
        "training": {"epochs": EPOCHS, "log_every_n_steps": 1, "precision": "32-true"},
        "optimizer": {"lr": {"backbone": 1e-5, "projection": 1e-5}, "warmup_epochs": 0},
        "checkpoint_selection": {"split": "none"},
    })  # fmt: skip
    run = orthoproxy.train(config, tmp_path / "run", evaluate=False)
    losses = run.records()["loss"].to_numpy()
    assert len(losses) == EPOCHS and np.isfinite(losses).all()
    assert losses[-1] < 0.7 * losses[0]
    assert orthoproxy.load(run.folder).encoder.image_size == 224


@pytest.mark.skipif(WEIGHTS is None, reason="DeiT-Ti's weights and the photographs of birds are not here")
def test_the_published_weights_tell_birds_apart_and_random_ones_do_not() -> None:
    """Recall@1 of the untrained encoder on eight species, with the published weights and with random ones."""
    assert WEIGHTS is not None
    birds = WEIGHTS.parents[1] / "cub100"
    table = pd.read_csv(birds / "images.csv").query("split == 'test'")
    table = table[table["label"].isin(sorted(table["label"].unique())[:8])].groupby("label").head(20)
    images = [str(birds / path) for path in table["path"]]
    scores = []
    for weights in (str(WEIGHTS), "none"):
        torch.manual_seed(0)
        encoder = Encoder("deit_tiny_patch16_224", embedding_dim=None, image_size=128)
        load_weights(encoder, weights)
        embeddings = Embedder(encoder).embed(images)
        similarity = embeddings @ embeddings.T - 2 * np.eye(len(images))
        labels = table["label"].to_numpy()
        scores.append((labels[similarity.argmax(axis=1)] == labels).mean())
    assert scores[0] > 0.6 and scores[0] > scores[1] + 0.3
