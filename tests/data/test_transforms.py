"""Views of an image, checked with a picture whose pixels say where they were."""

import pickle
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from errors import error_of
from many import in_processes
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from orthoproxy.data import evaluation_transform, training_transform


@pytest.fixture(scope="module")
def map_image() -> Image.Image:
    """Red is the column, green the row, blue constant."""
    y, x = np.mgrid[:256, :256]
    return Image.fromarray(np.dstack([x, y, np.full_like(x, 77)]).astype(np.uint8))


@pytest.mark.parametrize(("size", "box", "flip"), [
    ((500, 375), ((0.2, 1.0), (3 / 4, 4 / 3)), 0.5), ((40, 33), ((0.5, 0.6), (0.9, 1.1)), 0.0),
    ((300, 30), ((0.9, 1.0), (2.0, 3.0)), 1.0),
])  # fmt: skip
def test_the_pixels_are_those_of_the_reference_crop(size: tuple[int, int], box: tuple, flip: float) -> None:
    """Torchvision's steps on a Pillow image, with the same draws."""
    coarse = np.random.default_rng(0).integers(256, size=(size[1] // 3, size[0] // 3, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size)
    crop = v2.RandomResizedCrop(64, *box, interpolation=InterpolationMode.BICUBIC)
    reference = v2.Compose([crop, v2.RandomHorizontalFlip(flip), v2.PILToTensor()])
    differences = []
    for seed in range(10):
        torch.manual_seed(seed)
        view = training_transform(64, *box, flip)(image).int()
        torch.manual_seed(seed)
        differences.append((view - reference(image).int()).abs().double())
    assert torch.stack(differences).max() <= 6  # where Pillow clips between its two passes
    assert torch.stack(differences).mean() < 0.3


@pytest.mark.parametrize("seed", range(4))  # the first takes the colors away
def test_colors_change_as_in_torchvision(seed: int, map_image: Image.Image) -> None:
    transform = pickle.loads(pickle.dumps(training_transform(64, flip=0.0, jitter=0.4, grayscale=0.5)))  # as workers do
    torch.manual_seed(seed)
    view = transform(map_image)
    torch.manual_seed(seed)
    crop = v2.RandomResizedCrop(64, (0.2, 1.0), interpolation=InterpolationMode.BICUBIC)(map_image)
    torch.rand(1)  # whether to flip
    colors = v2.Compose([v2.ColorJitter(0.4, 0.4, 0.4), v2.RandomGrayscale(0.5), v2.PILToTensor()])
    assert (view.int() - colors(crop).int()).abs().max() <= 4


@pytest.mark.parametrize(("size", "resize", "side"), [
    (224, None, 256), (64, None, 73), (64, 64, 64), (63, 100, 100), (64, "stretch", [64, 64]),
])  # fmt: skip
@pytest.mark.parametrize("shape", [(200, 131), (37, 90), (73, 73)])
def test_the_fixed_view_is_that_of_torchvision(size, resize, side, shape, map_image) -> None:
    image, resized = map_image.resize(shape), v2.Resize(side, interpolation=InterpolationMode.BICUBIC)
    reference = v2.Compose([resized, v2.CenterCrop(size), v2.PILToTensor()])
    assert np.array_equal(evaluation_transform(size, resize)(image), reference(image))


@pytest.mark.parametrize("shape", [(2000, 131), (90, 1800)])
def test_of_a_strip_only_what_the_crop_keeps_is_resized(shape: tuple[int, int], map_image: Image.Image) -> None:
    image = map_image.resize(shape)
    reference = v2.Compose([v2.Resize(73, InterpolationMode.BICUBIC), v2.CenterCrop(64), v2.PILToTensor()])
    assert np.abs(evaluation_transform(64)(image).astype(int) - reference(image).int().numpy()).max() <= 1


def _colors_with_little_memory(transform: Callable, shape: tuple[int, int]) -> list[float]:
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * 4096 + 10**8
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return np.asarray(transform(Image.new("RGB", shape, (10, 20, 30)))).mean(axis=(1, 2)).tolist()


@pytest.mark.parametrize("shape", [(400_000, 1), (1, 400_000)])
def test_a_strip_takes_little_memory(shape: tuple[int, int]) -> None:
    for transform in (evaluation_transform(224), evaluation_transform(224, "stretch"), training_transform(224)):
        transform(Image.new("RGB", (300, 200)))  # its imports
        assert in_processes(1, _colors_with_little_memory, transform, shape) == [[10, 20, 30]]


def test_a_crop_larger_than_the_resized_image_is_an_error() -> None:
    assert error_of(evaluation_transform, 64, resize=32).field == "resize"
