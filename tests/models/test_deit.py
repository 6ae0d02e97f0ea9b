"""The published weights of DeiT are worth having."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from orthoproxy.embedding.embedder import Embedder
from orthoproxy.models import Encoder, load_weights

ROOT = Path(__file__).parents[2]
FILE = "data/weights/deit_tiny_patch16_224.safetensors"
WEIGHTS = next((path for path in (ROOT / FILE, ROOT.parent / "shared" / FILE) if path.is_file()), None)


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
