"""Smaller copies of images: the pixels that evaluation wants, made once, whole whatever happens meanwhile."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import orthoproxy
from orthoproxy.core.errors import InputError
from orthoproxy.data import (
    BatchSampler,
    EvaluationImages,
    TrainingImages,
    cache,
    cached_images,
    evaluation_size,
    evaluation_transform,
    read_image,
    training_transform,
)
from orthoproxy.data.transforms import Resize
from orthoproxy.runs import build as builders
from orthoproxy.runs import config as c

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


def no_more_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "read_image", lambda path: pytest.fail(f"{path} was read again"))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("resize", [40, 60, "stretch"])
def test_evaluation_of_the_copies_has_the_pixels_of_the_files(
    resize: Resize, workers: int, paths: list[str], folder: Path
) -> None:
    kept = cached_images(paths, folder, evaluation_size(40, resize), workers)
    view = evaluation_transform(40, resize)
    for number, (of_copy, of_file) in enumerate(
        zip(EvaluationImages(kept, view), EvaluationImages(paths, view), strict=True)
    ):
        assert torch.equal(of_copy, of_file), paths[number]


def test_what_is_small_is_kept_as_it_is_and_what_is_large_is_not(paths: list[str], folder: Path) -> None:
    for picture, path, size in zip(cached_images(paths, folder, 40), paths, SIZES, strict=True):
        assert (picture.width, picture.height) == size
        assert min(picture.pixels.shape[:2]) == min(40, *size)
        if min(size) <= 40:
            assert np.array_equal(picture.pixels, np.asarray(read_image(path)))


def test_training_views_of_copies_are_the_same_crops_on_every_worker(paths: list[str], folder: Path) -> None:
    kept, labels = cached_images(paths, folder, 40), [0, 0, 0, 1, 1, 1]
    datasets = [TrainingImages(images, labels, training_transform(32)) for images in (kept, paths)]
    sampler = BatchSampler(labels, batch_size=3, seed=1)
    batches = [list(DataLoader(datasets[0], batch_sampler=sampler, num_workers=workers)) for workers in (0, 2)]
    assert all(torch.equal(one[0], other[0]) for one, other in zip(*batches, strict=True))
    small = SIZES.index((20, 30))  # kept as it is
    assert torch.equal(datasets[0][small, 5][0], datasets[1][small, 5][0])
    of_copy, of_file = (dataset[0, 5][0].double() for dataset in datasets)
    assert 0 < (of_copy - of_file).abs().mean() < 12
    assert np.corrcoef(of_copy.flatten(), of_file.flatten())[0, 1] > 0.97


def test_rows_come_in_the_order_asked_for_also_twice_and_in_part(paths: list[str], folder: Path) -> None:
    asked = [paths[2], paths[0], paths[2]]
    kept = cached_images(asked, folder, 40)
    assert [(x.width, x.height) for x in kept] == [SIZES[2], SIZES[0], SIZES[2]]
    assert [(x.width, x.height) for x in kept[1:]] == [SIZES[0], SIZES[2]]
    assert len(cached_images(paths, folder, 40)) == 6
    assert len(np.load(folder / "v1-40" / "index.npy")) == 6


def test_copies_are_made_once_and_sent_to_workers_without_their_pixels(
    paths: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cached_images(paths, folder, 40)
    no_more_work(monkeypatch)
    again = pickle.loads(pickle.dumps(cached_images(paths[::-1], folder, 40)))
    assert len(pickle.dumps(first)) < 3000 < first[0].pixels.nbytes
    for one, other in zip(first, reversed(list(again)), strict=True):
        assert np.array_equal(one.pixels, other.pixels)


def test_sizes_and_later_versions_of_a_file_have_copies_of_their_own(paths: list[str], folder: Path) -> None:
    before = cached_images(paths[:1], folder, 40)[0].pixels.copy()
    assert cached_images(paths[:1], folder, 30)[0].pixels.shape == (30, 40, 3)
    assert cached_images(paths[:1], folder, (30, 30))[0].pixels.shape == (30, 30, 3)
    save_photo(Path(paths[0]), SIZES[0], seed=9)
    os.utime(paths[0], ns=(0, 0))
    assert not np.array_equal(cached_images(paths[:1], folder, 40)[0].pixels, before)


def test_an_interrupted_cache_goes_on_and_readers_see_whole_copies_only(
    paths: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [x.pixels.copy() for x in cached_images(paths, folder.with_name("whole"), 40)]
    monkeypatch.setattr(cache, "BATCH", 1)

    def stopped(path: str) -> Image.Image:
        if path == paths[4]:
            raise KeyboardInterrupt
        return read_image(path)

    monkeypatch.setattr(cache, "read_image", stopped)
    with pytest.raises(KeyboardInterrupt):
        cached_images(paths, folder, 40)
    early = cached_images(paths[:4], folder, 40)
    with (folder / "v1-40" / "pixels.bin").open("ab") as file:
        file.write(b"written, but not yet named in the index")
    monkeypatch.setattr(cache, "read_image", lambda path: read_image(path) if path in paths[4:] else pytest.fail(path))
    late = cached_images(paths, folder, 40)
    assert all(np.array_equal(x.pixels, expected) for x, expected in zip(late, whole, strict=True))
    assert all(np.array_equal(x.pixels, expected) for x, expected in zip(early, whole, strict=False))
    assert (folder / "v1-40" / "pixels.bin").stat().st_size == sum(x.nbytes for x in whole)


@pytest.mark.parametrize(
    "damage", ["no index", "empty index", "text", "another table", "no pixels", "pixels cut short"]
)
def test_a_damaged_cache_is_made_anew(damage: str, paths: list[str], folder: Path) -> None:
    reader = cached_images(paths, folder, 40)
    whole = [x.pixels.copy() for x in reader]
    index, pixels = folder / "v1-40" / "index.npy", folder / "v1-40" / "pixels.bin"
    if damage == "no index":
        index.unlink()
    elif damage == "another table":
        np.save(index, np.zeros((3, 2)))
    elif damage == "no pixels":
        pixels.unlink()
    elif damage == "pixels cut short":
        os.truncate(pixels, pixels.stat().st_size - 1)
    else:
        index.write_text("" if damage == "empty index" else damage)
    again = cached_images(paths, folder, 40)
    if damage != "pixels cut short":
        assert all(np.array_equal(x.pixels, expected) for x, expected in zip(reader, whole, strict=True))
    assert all(np.array_equal(x.pixels, expected) for x, expected in zip(again, whole, strict=True))


def test_two_at_once_make_each_copy_once(paths: list[str], folder: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda rows: cached_images(rows, folder, 40), (paths, paths[::-1])))
    for one, other in zip(both[0], reversed(list(both[1])), strict=True):
        assert np.array_equal(one.pixels, other.pixels)
    assert (folder / "v1-40" / "pixels.bin").stat().st_size == sum(x.pixels.nbytes for x in both[0])


@pytest.mark.slow
def test_two_processes_share_a_cache(paths: list[str], folder: Path) -> None:
    script = (
        "import sys; from orthoproxy.data import cached_images\n"
        "print(sum(int(x.pixels.sum()) for x in cached_images(sys.argv[2:], sys.argv[1], 40)))"
    )
    command = [sys.executable, "-c", script, str(folder), *paths]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    sums = [process.communicate(timeout=300)[0] for process in running]
    kept = cached_images(paths, folder, 40)
    assert sums == [f"{sum(int(x.pixels.sum()) for x in kept)}\n"] * 2
    assert (folder / "v1-40" / "pixels.bin").stat().st_size == sum(x.pixels.nbytes for x in kept)


def test_a_process_waits_for_another_that_fills_the_cache(
    paths: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Busy(cache.FileLock):
        def acquire(self, timeout: float | None = None, **options: object) -> object:
            if timeout == 0:
                raise cache.Timeout("lock")
            return super().acquire(timeout, **options)

    monkeypatch.setattr(cache, "FileLock", Busy)
    assert len(cached_images(paths, folder, 40)) == 6
    assert "another process is filling" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_and_the_others_are_kept(workers: int, paths: list[str], folder: Path) -> None:
    Path(paths[3]).write_bytes(b"no image")
    with pytest.raises(InputError, match=r"cannot read the image .*3\.jpg: .*\n?.*replace the file or leave it out"):
        cached_images(paths, folder, 40, workers)
    Path(paths[3]).unlink()
    with pytest.raises(InputError, match=r"3\.jpg: No such file .*\nreplace the file or leave it out"):
        cached_images(paths, folder, 40, workers)
    assert len(cached_images(paths[:3] + paths[4:], folder, 40, workers)) == 5


def test_too_little_space_is_found_out_before_the_work(
    paths: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = namedtuple("disk", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk(1000))
    no_more_work(monkeypatch)
    with pytest.raises(InputError, match=r"data\.cache: 6 images take about 0\.0 GB; .* has 0\.0 GB left\nfree some"):
        cached_images(paths, folder, 40)


def test_a_disk_that_runs_full_leaves_no_half_copy(paths: list[str], folder: Path) -> None:
    resource = pytest.importorskip("resource", reason="no limits on this system")
    cached_images(paths[:2], folder, 40)
    before = (folder / "v1-40" / "pixels.bin").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (before + 1000, limits[1]))
    try:
        with pytest.raises(
            InputError, match=r"data\.cache: cannot write to .*cache: File too large; free some space, or"
        ):
            cached_images(paths, folder, 40)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (folder / "v1-40" / "pixels.bin").stat().st_size == before
    assert sorted(path.name for path in (folder / "v1-40").iterdir()) == ["index.npy", "lock", "pixels.bin"]
    assert len(cached_images(paths, folder, 40)) == 6


def test_a_folder_that_cannot_be_made_is_an_input_error(paths: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"data\.cache: cannot write to .*file: .*give another folder"):
        cached_images(paths, tmp_path / "file", 40)


@pytest.mark.parametrize(
    ("resize", "cache_size", "training", "evaluation"),
    [(None, None, "v1-37", "v1-37"), (40, None, "v1-40", "v1-40"), (40, 60, "v1-60", None), (40, 40, "v1-40", "v1-40"),
     ("stretch", None, "v1-32x32", "v1-32x32"), ("stretch", 50, "v1-50x50", None)],
)  # fmt: skip
def test_what_a_run_reads(
    resize: Resize, cache_size: int | None, training: str, evaluation: str | None, paths: list[str], folder: Path
) -> None:
    data = c.Data(root="images", cache=str(folder), cache_size=cache_size, resize=resize, workers=0)
    config = c.Config(data=data, encoder=c.Encoder(image_size=32))
    kept = builders.keep_images(config, paths)
    assert isinstance(kept, cache.CachedImages) and kept.file.parent.name == training
    judged = builders.keep_images(config, paths, evaluation=True)
    assert (judged.file.parent.name if isinstance(judged, cache.CachedImages) else None) == evaluation
    loader, _ = builders.make_loader(config, paths, [0] * 6)
    assert isinstance(loader.dataset, TrainingImages) and isinstance(loader.dataset.images, cache.CachedImages)


def test_a_run_starts_from_the_same_numbers_with_a_cache(tmp_path: Path, folder: Path) -> None:
    root = tmp_path / "birds"
    for number in range(6):
        (root / str(number)).mkdir(parents=True)
        for photo in range(3):
            save_photo(root / str(number) / f"{photo}.png", (60 + photo, 50), 3 * number + photo)
    runs = []
    for directory in (None, str(folder)):
        data = c.Data(name="folder", root=str(root), test_fraction=0.34, workers=0, cache=directory)
        config = c.Config(
            data=data,
            encoder=c.Encoder(name="deit_tiny_patch16_224", weights="none", embedding_dim=8, image_size=32),
            training=c.Training(epochs=1, batch_size=4, precision="32-true", select_on="none"),
        )
        runs.append(orthoproxy.train(config, tmp_path / f"run-{len(runs)}"))
    plain, cached = (run.scores for run in runs)
    assert plain["baseline"] == cached["baseline"]
    assert len(np.load(folder / "v1-37" / "index.npy")) == 12  # those of the training classes
    assert runs[1].config.data.cache == str(folder)
