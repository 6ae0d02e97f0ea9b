"""Decoding and augmenting photographs compared with torchvision's ImageFolder.

python benchmarks/loading.py --images 64 --runs 15
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measure import arguments, report, times_faster
from PIL import Image
from torchvision import transforms as tv
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from orthoproxy.data import TrainingImages, images, read_image, training_transform
from orthoproxy.data.images import read_pixels

WIDTH, HEIGHT, SIDE = 500, 375, 224
BATCH = 16


def photograph(seed: int) -> Image.Image:
    """Noise of all scales as nature has it, shapes with sharp edges, and the grain of a sensor."""
    generator = np.random.default_rng(seed)
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.float32)
    for cells in 2 ** np.arange(1, 9):
        shape = (max(2, cells * HEIGHT // WIDTH + 1), cells + 1)
        layer = generator.normal(size=(*shape, 1)) + 0.6 * generator.normal(size=(*shape, 3))
        pixels += np.dstack([_enlarged(channel) for channel in np.moveaxis(layer, 2, 0)]) / cells**0.62
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for _ in range(25):
        size, angle = generator.uniform(10, 90), generator.uniform(0, np.pi)
        across, down = x - generator.uniform(0, WIDTH), y - generator.uniform(0, HEIGHT)
        far = np.hypot(across, down) if generator.random() < 0.5 else abs(across * np.cos(angle) + down * np.sin(angle))
        inside = 0.8 * np.clip(size - far, 0, 1)[..., None] * (np.hypot(across, down) < 2 * size)[..., None]
        pixels = pixels * (1 - inside) + inside * generator.normal(size=3)
    pixels = (pixels - pixels.mean()) / pixels.std() * 55 + 120 + 5.5 * generator.normal(size=(HEIGHT, WIDTH, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _enlarged(channel: np.ndarray) -> np.ndarray:
    image = Image.fromarray(channel.astype(np.float32))
    return np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def folder_with(interpolation: InterpolationMode, folder: str, last: Callable) -> ImageFolder:
    crop = tv.RandomResizedCrop(SIDE, (0.2, 1.0), interpolation=interpolation)
    return ImageFolder(folder, tv.Compose([crop, tv.RandomHorizontalFlip(), last]))


class Before:
    """How this package read images at first: Pillow throughout."""

    def __init__(self, paths: list[str]) -> None:
        crop = v2.RandomResizedCrop(SIDE, (0.2, 1.0), interpolation=InterpolationMode.BICUBIC)
        self.paths, self.steps = paths, v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()])

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.steps(read_image(self.paths[row]))


def cpu_seconds(candidates: dict[str, Callable[[int], object]], rows: int, runs: int) -> dict[str, list[float]]:
    """Processor time an image: each candidate in turn does a batch, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for run in range(runs + 1):
        for name, work in candidates.items():
            start = time.thread_time()
            batch = [work((run * BATCH + place) % rows) for place in range(BATCH)]
            if isinstance(batch[0], torch.Tensor):
                torch.stack(batch)  # pyright: ignore[reportArgumentType]
            if run:
                seconds[name].append((time.thread_time() - start) / BATCH)
    return seconds


def without_simplejpeg(work: Callable[[int], object], row: int) -> object:
    decoder, images.decode_jpeg = images.decode_jpeg, None
    try:
        return work(row)
    finally:
        images.decode_jpeg = decoder


def candidates_for(folder: str, paths: list[str]) -> dict[str, Callable[[int], object]]:
    view, labels = training_transform(SIDE), [0] * len(paths)
    files = TrainingImages(paths, labels, view)
    pictures, before = [read_pixels(path) for path in paths], Before(paths)
    bicubic = folder_with(InterpolationMode.BICUBIC, f"{folder}/jpeg", tv.ToTensor())
    in_bytes = folder_with(InterpolationMode.BICUBIC, f"{folder}/jpeg", tv.PILToTensor())
    bilinear = folder_with(InterpolationMode.BILINEAR, f"{folder}/jpeg", tv.ToTensor())
    return {
        "ImageFolder, Pillow, bicubic": lambda row: bicubic[row][0],
        "ImageFolder, Pillow, bicubic, uint8": lambda row: in_bytes[row][0],
        "ImageFolder, Pillow, bilinear (torchvision's default)": lambda row: bilinear[row][0],
        "orthoproxy, Pillow only": lambda row: before[row],
        "orthoproxy": lambda row: files[row, row][0],
        "orthoproxy without simplejpeg": lambda row: without_simplejpeg(lambda row: files[row, row][0], row),
        "orthoproxy, read and decode only": lambda row: (read_pixels(paths[row]), None),
        "orthoproxy, crop, resize and flip only": lambda row: view(pictures[row]),
    }


def main() -> None:
    options = arguments(__doc__ or "", images=64, runs=15)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "jpeg" / "class").mkdir(parents=True)
        paths = [f"{folder}/jpeg/class/{number:03}.jpg" for number in range(options.images)]
        for number, path in enumerate(paths):
            photograph(number).save(path, quality=90)
        size = statistics.mean(Path(path).stat().st_size for path in paths) / 1000
        seconds = cpu_seconds(candidates_for(folder, paths), len(paths), options.runs)
    reference, *_ = seconds
    rows = [
        {
            "what": name,
            "ms per image": 1000 * statistics.median(values),
            "images/s per core": 1 / statistics.median(values),
            "speedup": times_faster(seconds, name, reference),
        }
        for name, values in seconds.items()
    ]
    report(
        "loading",
        f"{WIDTH} x {HEIGHT} JPEG decoded and augmented to {SIDE} x {SIDE}, one core",
        list(rows[0]),
        rows,
        f"JPEGs of {size:.0f} KB on average, in memory after the first round. With stacking into batches of {BATCH}, "
        "but for the reading alone.\nAll candidates resize bicubically with antialiasing and draw the same crops.",
    )


if __name__ == "__main__":
    main()
