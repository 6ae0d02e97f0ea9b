"""DeiT-Ti's published weights on photographs of birds, where both are at hand."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from orthoproxy.data import evaluation_transform, read_image
from orthoproxy.models import Encoder, load_weights
from orthoproxy.runs.recipes import read_config
from orthoproxy.runs.train import train

ROOT = Path(__file__).parents[2]
FILE = "data/weights/deit_tiny_patch16_224.safetensors"
WEIGHTS = next((path for path in (ROOT / FILE, ROOT.parent / "shared" / FILE) if path.is_file()), ROOT / FILE)
BIRDS = WEIGHTS.parents[1] / "cub100"
IMAGENET_CLASSES = {"European_Goldfinch": 11, "Indigo_Bunting": 14, "Red_breasted_Merganser": 98, "White_Pelican": 144}

pytestmark = pytest.mark.skipif(
    not (WEIGHTS.is_file() and (BIRDS / "images.csv").is_file()),
    reason="DeiT-Ti's weights and the photographs of birds are not here",
)


def test_four_kinds_of_birds_that_imagenet_has_are_recognized() -> None:
    encoder, classifier = Encoder("deit_tiny_patch16_224").eval(), load_file(WEIGHTS)
    load_weights(encoder, str(WEIGHTS))
    for label, number in IMAGENET_CLASSES.items():
        paths = sorted((BIRDS / "images" / label).iterdir())[:8]
        images = torch.stack([torch.from_numpy(evaluation_transform(224)(read_image(path))) for path in paths])
        with torch.no_grad():
            logits = encoder.features(images) @ classifier["head.weight"].T + classifier["head.bias"]
        assert (logits.argmax(dim=1) == number).sum() >= 5, label


def test_ten_steps_of_the_recipe_lower_the_loss(tmp_path: Path) -> None:
    options = {"data.csv": str(BIRDS / "images.csv"), "data.max_images_per_class": 3, "data.workers": 0}
    options |= {"encoder.init_from": str(WEIGHTS), "encoder.image_size": 64}
    options |= {"sampler.batch_size": 34}  # two images of 17 species: five steps an epoch
    options |= {"training.epochs": 2, "training.log_every_n_steps": 1, "training.precision": "32-true"}
    run = train(read_config(ROOT / "recipes" / "cub100.yaml", overrides=options), tmp_path / "run", evaluate=False)
    losses = run.records()["loss"].dropna()
    assert len(losses) == 10
    assert losses.iloc[5:].mean() < 0.9 * losses.iloc[:5].mean(), losses.tolist()
