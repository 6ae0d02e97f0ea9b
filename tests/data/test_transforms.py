"""Views of an image, checked with a picture whose pixels say where they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from orthoproxy.data import evaluation_transform, training_transform

SIDE = 256


@pytest.fixture(scope="module")
def map_image() -> Image.Image:
    """Red is the column, green the row, blue constant."""
    y, x = np.mgrid[:SIDE, :SIDE]
    return Image.fromarray(np.dstack([x, y, np.full((SIDE, SIDE), 77)]).astype(np.uint8))


def crop_of(pixels: torch.Tensor) -> tuple[float, float, bool]:
    """Width and height of the crop in pixels, and whether it is mirrored; from the slope between inner columns."""
    size, middle = pixels.shape[1], pixels[:2].double()
    low, high = size // 4, size - 1 - size // 4
    across = (middle[0, :, high] - middle[0, :, low]).mean() / (high - low) * size
    down = (middle[1, high] - middle[1, low]).mean() / (high - low) * size
    return abs(float(across)), float(down), bool(across < 0)


@pytest.mark.parametrize("size", [(300, 200), (64, 64), (20, 90), (1, 1)])
@pytest.mark.parametrize("image_size", [32, 65])
def test_every_view_is_a_square_of_bytes(size: tuple[int, int], image_size: int) -> None:
    image = Image.new("RGB", size, (10, 20, 30))
    for transform in (training_transform(image_size, jitter=0.2), evaluation_transform(image_size)):
        pixels = transform(image)
        assert pixels.shape == (3, image_size, image_size) and pixels.dtype == torch.uint8


@pytest.mark.parametrize(("crop_scale", "crop_ratio"), [((0.2, 1.0), (3 / 4, 4 / 3)), ((0.5, 0.6), (0.9, 1.1))])
def test_crops_stay_within_their_bounds_and_use_them(
    crop_scale: tuple[float, float], crop_ratio: tuple[float, float], map_image: Image.Image
) -> None:
    torch.manual_seed(0)
    transform = training_transform(64, crop_scale, crop_ratio)
    crops = np.array([crop_of(transform(map_image))[:2] for _ in range(300)])
    share, ratio = crops[:, 0] * crops[:, 1] / SIDE**2, crops[:, 0] / crops[:, 1]
    span = crop_scale[1] - crop_scale[0]
    assert share.min() >= crop_scale[0] * 0.97 and share.max() <= crop_scale[1] * 1.03
    assert share.min() < crop_scale[0] + 0.15 * span and share.max() > crop_scale[1] - 0.25 * span
    assert ratio.min() >= crop_ratio[0] * 0.97 and ratio.max() <= crop_ratio[1] * 1.03
    assert ratio.min() < 0.95 and ratio.max() > 1.05


@pytest.mark.parametrize(("flip", "least", "most"), [(0.0, 0, 0), (0.5, 60, 140), (1.0, 200, 200)])
def test_the_chance_of_a_flip(flip: float, least: int, most: int, map_image: Image.Image) -> None:
    torch.manual_seed(0)
    transform = training_transform(32, flip=flip)
    assert least <= sum(crop_of(transform(map_image))[2] for _ in range(200)) <= most


def test_jitter_changes_colour_and_only_when_asked(map_image: Image.Image) -> None:
    torch.manual_seed(0)
    blues = {jitter: {int(training_transform(32, jitter=jitter)(map_image)[2].double().mean()) for _ in range(20)}
             for jitter in (0.0, 0.4)}  # fmt: skip
    assert blues[0.0] == {77}
    assert len(blues[0.4]) > 5


@pytest.mark.parametrize(("image_size", "resize"), [(224, None), (64, None), (64, 64), (64, 128)])
def test_the_fixed_view_is_the_centre_after_the_shorter_side_is_resized(
    image_size: int, resize: int | None, map_image: Image.Image
) -> None:
    shorter = resize or round(image_size * 256 / 224)
    wide = map_image.crop((0, 64, 256, 192))  # 256 x 128: columns 0 to 255, rows 64 to 191
    pixels = evaluation_transform(image_size, resize)(wide).double()
    scale = 128 / shorter
    places = (torch.arange(image_size) + 0.5 - image_size / 2) * scale - 0.5
    inside = slice(2, -2)  # at a border there is less to interpolate
    assert (pixels[0].mean(dim=0) - (128 + places)).abs()[inside].max() < 1.5
    assert (pixels[1].mean(dim=1) - (128 + places)).abs()[inside].max() < 1.5
    assert torch.equal(pixels, evaluation_transform(image_size, resize)(wide).double())


def test_a_squashed_view_has_the_whole_image(map_image: Image.Image) -> None:
    wide = map_image.crop((0, 64, 256, 192))
    pixels = evaluation_transform(64, "squash")(wide).double()
    assert (pixels[0].mean(dim=0) - (torch.arange(64) * 4 + 1.5))[2:-2].abs().max() < 1
    assert (pixels[1].mean(dim=1) - (64 + torch.arange(64) * 2 + 0.5))[2:-2].abs().max() < 1


@pytest.mark.parametrize(("chance", "least", "most"), [(0.0, 0, 0), (0.5, 60, 140), (1.0, 200, 200)])
def test_the_chance_of_grey(chance: float, least: int, most: int, map_image: Image.Image) -> None:
    torch.manual_seed(0)
    views = [training_transform(16, grayscale=chance)(map_image) for _ in range(200)]
    assert least <= sum(bool((view == view[:1]).all()) for view in views) <= most


def test_the_fields_habit_is_256_for_224() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=(300, 400, 3), dtype=np.uint8))
    assert torch.equal(evaluation_transform(224)(image), evaluation_transform(224, 256)(image))


def test_a_crop_larger_than_the_resized_image_is_refused_not_padded_with_black() -> None:
    with pytest.raises(ValueError, match="resize"):
        evaluation_transform(64, resize=32)
