"""Views of an image, checked with a picture whose pixels say where they were."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import InterpolationMode, RandomResizedCrop, v2

from orthoproxy.core.errors import InputError
from orthoproxy.data import CroppableImage, evaluation_transform, training_transform

SIDE = 256


@pytest.fixture(scope="module")
def map_image() -> Image.Image:
    """Red is the column, green the row, blue constant."""
    y, x = np.mgrid[:SIDE, :SIDE]
    return Image.fromarray(np.dstack([x, y, np.full((SIDE, SIDE), 77)]).astype(np.uint8))


@pytest.mark.parametrize("size", [(300, 200), (20, 90), (1, 1)])
def test_every_view_is_a_square_of_bytes(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (10, 20, 30))
    for transform in (training_transform(33, jitter=0.2), evaluation_transform(33)):
        pixels = transform(image)
        assert pixels.shape == (3, 33, 33) and pixels.dtype == torch.uint8


class Watched(CroppableImage):
    """Notes the boxes that are cut out of it, as top, left, height, width."""

    boxes: list[tuple[int, int, int, int]] = []  # noqa: RUF012

    def crop(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        self.boxes.append((top, left, height, width))
        return super().crop(top, left, height, width)


def crop_boxes(view: Callable, size: tuple[int, int], seeds: range) -> np.ndarray:
    picture = Watched(np.zeros((size[1], size[0], 3), dtype=np.uint8), *size)
    Watched.boxes = []
    for seed in seeds:
        torch.manual_seed(seed)
        view(picture)
    return np.array(Watched.boxes)


@pytest.mark.parametrize(
    ("crop_scale", "crop_ratio", "size"),
    [
        ((0.2, 1.0), (3 / 4, 4 / 3), (50, 37)),
        ((0.5, 0.6), (0.9, 1.1), (37, 50)),
        ((0.9, 1.0), (2.0, 3.0), (300, 20)),
    ],
)
def test_crops_are_distributed_as_those_of_torchvision(
    crop_scale: tuple[float, float], crop_ratio: tuple[float, float], size: tuple[int, int]
) -> None:
    crops = crop_boxes(training_transform(8, crop_scale, crop_ratio), size, range(300))
    expected, image = [], Image.new("RGB", size)
    for seed in range(1000, 1300):  # others, so that it is the distributions that agree
        torch.manual_seed(seed)
        expected.append(RandomResizedCrop.get_params(image, list(crop_scale), list(crop_ratio)))
    for statistic in (
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 3] / box[:, 2],
        lambda box: box[:, 0] + box[:, 2] / 2,
        lambda box: box[:, 1] + box[:, 3] / 2,
    ):
        assert ks_2samp(statistic(crops), statistic(np.array(expected))).pvalue > 1e-3


def test_where_the_crop_lies_does_not_depend_on_the_other_options() -> None:
    plain = crop_boxes(training_transform(8), (50, 40), range(25))
    for options in ({"flip": 0.0}, {"jitter": 0.4}, {"grayscale": 0.5}, {"flip": 1.0, "jitter": 0.1, "grayscale": 1.0}):
        assert np.array_equal(crop_boxes(training_transform(8, **options), (50, 40), range(25)), plain)
    assert np.array_equal(crop_boxes(training_transform(32), (50, 40), range(25)), plain)
    assert len(np.unique(plain, axis=0)) > 18


@pytest.mark.parametrize("size", [(500, 375), (40, 33)])
def test_the_pixels_are_those_of_the_reference_crop(size: tuple[int, int]) -> None:
    """Torchvision's steps on a Pillow image, with the same draws."""
    coarse = np.random.default_rng(0).integers(256, size=(size[1] // 3, size[0] // 3, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size)
    steps = [
        v2.RandomResizedCrop(64, (0.2, 1.0), (3 / 4, 4 / 3), InterpolationMode.BICUBIC),
        v2.RandomHorizontalFlip(),
        v2.PILToTensor(),
    ]
    differences = []
    for seed in range(10):
        torch.manual_seed(seed)
        view = training_transform(64)(image).int()
        torch.manual_seed(seed)
        differences.append((view - v2.Compose(steps)(image).int()).abs().double())
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


def test_a_smaller_copy_gives_the_same_crop_only_softer(map_image: Image.Image) -> None:
    copy = CroppableImage(np.asarray(map_image.resize((128, 64), Image.Resampling.BICUBIC)), *map_image.size)
    for seed in range(20):
        views = []
        for image in (map_image, copy):
            torch.manual_seed(seed)
            views.append(training_transform(64)(image).int()[:, 3:-3, 3:-3])
        assert (views[0] - views[1]).abs().max() <= 6  # half a pixel of the copy is 2 of the picture


def test_an_augmentation_can_be_sent_to_another_process(map_image: Image.Image) -> None:
    transform = training_transform(16, jitter=0.2, grayscale=0.2)
    views = []
    for each in (transform, pickle.loads(pickle.dumps(transform))):
        torch.manual_seed(0)
        views.append(each(map_image))
    assert torch.equal(*views)
    assert views[0].is_contiguous()


@pytest.mark.parametrize(("chance", "least", "most"), [(0.0, 0, 0), (0.5, 30, 70), (1.0, 100, 100)])
def test_the_probability_of_a_flip_and_of_gray(chance: float, least: int, most: int, map_image: Image.Image) -> None:
    torch.manual_seed(0)
    transform = training_transform(32, flip=chance)
    flips = [transform(map_image)[0].double() for _ in range(100)]
    assert least <= sum(bool(red[:, -8:].mean() < red[:, :8].mean()) for red in flips) <= most
    transform = training_transform(16, grayscale=chance)
    views = [transform(map_image) for _ in range(100)]
    assert least <= sum(bool((view == view[:1]).all()) for view in views) <= most


@pytest.mark.parametrize(("image_size", "resize"), [(224, None), (64, 64), (64, 128)])
def test_the_fixed_view_is_the_center_after_the_shorter_side_is_resized(
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


def test_a_stretched_view_has_the_whole_image(map_image: Image.Image) -> None:
    wide = map_image.crop((0, 64, 256, 192))
    pixels = evaluation_transform(64, "stretch")(wide).double()
    assert (pixels[0].mean(dim=0) - (torch.arange(64) * 4 + 1.5))[2:-2].abs().max() < 1
    assert (pixels[1].mean(dim=1) - (64 + torch.arange(64) * 2 + 0.5))[2:-2].abs().max() < 1


def test_a_crop_larger_than_the_resized_image_is_an_error() -> None:
    with pytest.raises(InputError) as caught:
        evaluation_transform(64, resize=32)
    assert caught.value.field == "resize"
