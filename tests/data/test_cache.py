"""The cache of resized images: the pixels that evaluation wants, made once, and made again if damaged."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from errors import error_of
from PIL import Image

from orthoproxy.core.errors import InputError
from orthoproxy.data import EvaluationImages, evaluation_transform, read_image
from orthoproxy.data.cache import cached_images
from orthoproxy.data.loading import UnreadableImageError
from orthoproxy.data.transforms import Resize, evaluation_size

SIZES = [(80, 60), (60, 80), (47, 131), (20, 30), (40, 40), (200, 41)]


def save_photo(path: Path, size: tuple[int, int], seed: int = 0) -> None:
    coarse = np.random.default_rng(seed).integers(256, size=(6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    (tmp_path / "images").mkdir()
    found = [tmp_path / "images" / f"{number}.{'jpg' if number % 2 else 'png'}" for number in range(len(SIZES))]
    for number, path in enumerate(found):
        save_photo(path, SIZES[number], number)
    return [str(path) for path in found]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def copies(folder: Path) -> dict[Path, int]:
    """The files of a cache and when each was written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/??/*")}


@pytest.mark.parametrize(("resize", "workers"), [(40, 0), (60, 2), ("stretch", 0)])
def test_evaluation_of_the_copies_has_the_pixels_of_the_files(
    resize: Resize, workers: int, paths: list[str], folder: Path
) -> None:
    cached = cached_images(paths, folder, evaluation_size(40, resize), workers)
    transform = evaluation_transform(40, resize)
    datasets = EvaluationImages(cached, transform), EvaluationImages(paths, transform)
    for row, path in enumerate(paths):
        assert torch.equal(datasets[0][row], datasets[1][row]), path


def test_large_images_are_resized_and_small_ones_kept(paths: list[str], folder: Path) -> None:
    for image, path, size in zip(cached_images(paths, folder, 40), paths, SIZES, strict=True):
        assert (image.width, image.height) == size
        assert min(image.pixels.shape[:2]) == min(40, *size)
        if min(size) <= 40:
            assert np.array_equal(image.pixels, np.asarray(read_image(path)))


def test_copies_are_made_once_and_come_in_the_order_asked_for(paths: list[str], folder: Path) -> None:
    first, made = cached_images(paths, folder, 40), copies(folder)
    assert len(made) == len(paths) and len(pickle.dumps(first)) < 3000 < first[0].pixels.nbytes
    order = [2, 0, 2]
    again = pickle.loads(pickle.dumps(cached_images([paths[row] for row in order], folder, 40)))
    assert copies(folder) == made
    for images, rows in ((again, order), (again[1:], order[1:])):
        assert [(x.width, x.height) for x in images] == [SIZES[row] for row in rows]
        assert all(np.array_equal(x.pixels, first[row].pixels) for x, row in zip(images, rows, strict=True))


def test_sizes_and_versions_of_a_file_have_copies_of_their_own(paths: list[str], folder: Path) -> None:
    before = cached_images(paths[:1], folder, 40)[0].pixels
    assert cached_images(paths[:1], folder, 30)[0].pixels.shape == (30, 40, 3)
    assert cached_images(paths[:1], folder, (30, 30))[0].pixels.shape == (30, 30, 3)
    save_photo(Path(paths[0]), SIZES[0], seed=9)
    os.utime(paths[0], ns=(0, 0))
    assert not np.array_equal(cached_images(paths[:1], folder, 40)[0].pixels, before)


def test_a_failing_read_deletes_nothing(paths: list[str], folder: Path) -> None:
    cached, made = cached_images(paths, folder, 40), copies(folder)
    damaged = min(made)
    damaged.unlink()
    damaged.mkdir()  # to read it is an OSError, as after an error of the disk
    with pytest.raises(InputError) as caught:
        [image.pixels for image in cached]
    assert caught.value.path == damaged and copies(folder).keys() == made.keys()


@pytest.mark.parametrize("length", [0, 16, -1])
def test_a_copy_that_was_cut_short_is_made_again(length: int, paths: list[str], folder: Path) -> None:
    cached, made = cached_images(paths, folder, 40), copies(folder)
    damaged = min(made)
    good = damaged.read_bytes()
    damaged.write_bytes(good[:length])
    expected = [image.pixels for image in cached_images(paths, folder.with_name("other"), 40)]
    assert all(np.array_equal(image.pixels, pixels) for image, pixels in zip(cached, expected, strict=True))
    assert damaged.read_bytes() == good
    assert {path: time for path, time in copies(folder).items() if path != damaged}.items() <= made.items()
    damaged.write_bytes(good[:length])
    for path in paths:
        os.utime(path, ns=(0, 0))  # now other images than those that the copies are of
    with pytest.raises(UnreadableImageError):
        [image.pixels for image in cached]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_and_the_others_are_kept(workers: int, paths: list[str], folder: Path) -> None:
    Path(paths[3]).write_bytes(b"not an image")
    assert error_of(cached_images, paths, folder, 40, workers).path == paths[3]
    assert len(copies(folder)) == 5
    Path(paths[3]).unlink()
    assert error_of(cached_images, paths, folder, 40, workers).path == paths[3]
    assert len(cached_images(paths[:3] + paths[4:], folder, 40, workers)) == 5


def test_a_disk_that_runs_full_leaves_no_half_copy(paths: list[str], folder: Path) -> None:
    resource = pytest.importorskip("resource", reason="no limits on this system")
    cached_images(paths[3:4], folder, 40)  # the smallest
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(InputError) as caught:
            cached_images(paths, folder, 40)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.hint and len(copies(folder)) == 1
    assert len(cached_images(paths, folder, 40)) == len(copies(folder)) == len(paths)


def make_and_sum(paths: list[str], folder: Path) -> int:
    return sum(int(image.pixels.sum()) for image in cached_images(paths, folder, 40))


def test_processes_share_a_cache(paths: list[str], folder: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        sums = list(pool.map(make_and_sum, [paths] * 4, [folder] * 4))
    assert sums == [make_and_sum(paths, folder)] * 4
    assert len(copies(folder)) == len(paths)
