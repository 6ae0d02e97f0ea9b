"""Views of an image, checked with a picture whose pixels say where they were."""

import multiprocessing
import os
import pickle
import resource
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from errors import error_of
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from orthoproxy.data import evaluation_transform, training_transform
from orthoproxy.data.transforms import Resize, evaluation_size

SIDE = 256


@pytest.fixture(scope="module")
def map_image() -> Image.Image:
    """Red is the column, green the row, blue constant."""
    y, x = np.mgrid[:SIDE, :SIDE]
    return Image.fromarray(np.dstack([x, y, np.full((SIDE, SIDE), 77)]).astype(np.uint8))


@pytest.mark.parametrize("size", [(300, 200), (20, 90), (1, 1)])
def test_every_view_is_a_square_of_bytes(size: tuple[int, int]) -> None:
    for transform in (training_transform(33, jitter=0.2), evaluation_transform(33)):
        pixels = transform(Image.new("RGB", size, (10, 20, 30)))
        assert np.asarray(pixels).shape == (3, 33, 33) and np.asarray(pixels).dtype == np.uint8


@pytest.mark.parametrize(("size", "box"), [
    ((500, 375), ((0.2, 1.0), (3 / 4, 4 / 3))), ((40, 33), ((0.5, 0.6), (0.9, 1.1))),
    ((300, 30), ((0.9, 1.0), (2.0, 3.0))),
])  # fmt: skip
def test_the_pixels_are_those_of_the_reference_crop(size: tuple[int, int], box: tuple) -> None:
    """Torchvision's steps on a Pillow image, with the same draws."""
    coarse = np.random.default_rng(0).integers(256, size=(size[1] // 3, size[0] // 3, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size)
    crop = v2.RandomResizedCrop(64, *box, interpolation=InterpolationMode.BICUBIC)
    reference = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()])
    differences = []
    for seed in range(10):
        torch.manual_seed(seed)
        view = training_transform(64, *box)(image).int()
        torch.manual_seed(seed)
        differences.append((view - reference(image).int()).abs().double())
    assert torch.stack(differences).max() <= 6  # where Pillow clips between its two passes
    assert torch.stack(differences).mean() < 0.3


def test_colors_change_as_in_torchvision(map_image: Image.Image) -> None:
    torch.manual_seed(0)
    view = training_transform(64, flip=0.0, jitter=0.4, grayscale=0.5)(map_image)
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(64, (0.2, 1.0), interpolation=InterpolationMode.BICUBIC)(map_image)
    torch.rand(1)  # whether to flip
    colors = v2.Compose([v2.ColorJitter(0.4, 0.4, 0.4), v2.RandomGrayscale(0.5), v2.PILToTensor()])
    assert (view.int() - colors(crop).int()).abs().max() <= 4


def test_an_augmentation_can_be_sent_to_another_process(map_image: Image.Image) -> None:
    transform, views = training_transform(16, jitter=0.2, grayscale=0.2), []
    for each in (transform, pickle.loads(pickle.dumps(transform))):
        torch.manual_seed(0)
        views.append(each(map_image))
    assert torch.equal(*views) and views[0].is_contiguous()


@pytest.mark.parametrize(("chance", "least", "most"), [(0.0, 0, 0), (0.5, 30, 70), (1.0, 100, 100)])
def test_the_probability_of_a_flip_and_of_gray(chance: float, least: int, most: int, map_image: Image.Image) -> None:
    torch.manual_seed(0)
    transform = training_transform(32, flip=chance)
    flips = [transform(map_image)[0].double() for _ in range(100)]
    assert least <= sum(bool(red[:, -8:].mean() < red[:, :8].mean()) for red in flips) <= most
    transform = training_transform(16, grayscale=chance)
    views = [transform(map_image) for _ in range(100)]
    assert least <= sum(bool((view == view[:1]).all()) for view in views) <= most


@pytest.mark.parametrize(
    ("size", "resize", "scales"),  # pixels of the image per pixel of the view, across and down
    [(224, None, (0.5, 0.5)), (64, 64, (2, 2)), (64, 128, (1, 1)), (64, "stretch", (4, 2))],
)
def test_the_fixed_view_is_resized_about_the_center(size, resize, scales, map_image) -> None:
    wide = map_image.crop((0, 64, 256, 192))  # 256 x 128: columns 0 to 255, rows 64 to 191
    pixels = torch.from_numpy(evaluation_transform(size, resize)(wide)).double()
    places = torch.arange(size) + 0.5 - size / 2
    inside = slice(2, -2)  # at a border there is less to interpolate
    for found, scale in zip((pixels[0].mean(dim=0), pixels[1].mean(dim=1)), scales, strict=True):
        assert (found - (127.5 + places * scale)).abs()[inside].max() < 1.5


@pytest.mark.parametrize(("size", "resize"), [(64, None), (64, 64), (63, 100), (64, "stretch")])
@pytest.mark.parametrize("shape", [(200, 131), (37, 90), (73, 73)])
def test_the_fixed_view_is_that_of_torchvision(
    size: int, resize: Resize, shape: tuple[int, int], map_image: Image.Image
) -> None:
    image, side = map_image.resize(shape), evaluation_size(size, resize)
    resized = v2.Resize(list(side) if isinstance(side, tuple) else side, interpolation=InterpolationMode.BICUBIC)
    reference = v2.Compose([resized, v2.CenterCrop(size), v2.PILToTensor()])
    assert np.array_equal(evaluation_transform(size, resize)(image), reference(image))


@pytest.mark.parametrize("shape", [(2000, 131), (90, 1800)])
def test_of_a_strip_only_what_the_crop_keeps_is_resized(shape: tuple[int, int], map_image: Image.Image) -> None:
    image = map_image.resize(shape)
    reference = v2.Compose([v2.Resize(73, InterpolationMode.BICUBIC), v2.CenterCrop(64), v2.PILToTensor()])
    assert np.abs(evaluation_transform(64)(image).astype(int) - reference(image).int().numpy()).max() <= 1


@pytest.mark.parametrize("shape", [(400_000, 1), (1, 400_000)])
def test_a_strip_takes_little_memory(shape: tuple[int, int]) -> None:
    def work(transform: Callable) -> None:
        limit = int(Path("/proc/self/statm").read_text().split()[0]) * 4096 + 10**8
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        pixels = np.asarray(transform(Image.new("RGB", shape, (10, 20, 30))))
        os._exit(0 if pixels.mean(axis=(1, 2)).tolist() == [10, 20, 30] else 1)

    for transform in (evaluation_transform(224), evaluation_transform(224, "stretch"), training_transform(224)):
        transform(Image.new("RGB", (300, 200)))  # its imports
        process = multiprocessing.get_context("fork").Process(target=work, args=(transform,))
        with warnings.catch_warnings(action="ignore"):  # newer Pythons warn of forking beside threads
            process.start()
        process.join()
        assert process.exitcode == 0


def test_a_crop_larger_than_the_resized_image_is_an_error() -> None:
    assert error_of(evaluation_transform, 64, resize=32).field == "resize"
