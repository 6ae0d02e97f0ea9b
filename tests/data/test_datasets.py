"""A training view depends on its row and seed alone; scripts that cannot have workers."""

import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

from orthoproxy.data import TrainingImages, folder_table, training_transform
from orthoproxy.data.images import read_image, read_pixels
from orthoproxy.data.loading import TIMEOUT_VARIABLE


def test_a_view_depends_on_row_and_seed_alone(image_folder: Path) -> None:
    paths, labels = folder_table(image_folder).path.tolist(), [number // 4 for number in range(12)]
    images = TrainingImages(paths, labels, training_transform(32, jitter=0.3))
    pixels, label = images[5, 123]
    assert (pixels.shape, pixels.dtype, label) == ((3, 32, 32), torch.uint8, 1)
    torch.manual_seed(99)
    assert torch.equal(images[5, 123][0], pixels)
    assert not torch.equal(images[5, 124][0], pixels)
    assert not torch.equal(images[6, 123][0], pixels)
    assert torch.equal(images[5, 2**63 - 1][0], images[5, 2**63 - 1][0])


@pytest.mark.parametrize("read", [read_image, read_pixels])
def test_lack_of_memory_is_not_damage(
    read, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.open(next(image_folder.rglob("*.png"))).convert("RGB").save(path := tmp_path / "x.jpg")
    monkeypatch.setattr(Image, "open", tried := Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError):
        read(path)
    tried.assert_called_once()


def test_no_file_name_is_an_object_whose_page_each_worker_would_copy() -> None:
    before = sys.getallocatedblocks()
    images = TrainingImages([f"{number}.png" for number in range(100_000)], [0] * 100_000, training_transform(32))
    assert sys.getallocatedblocks() - before < 50_000 and len(images) == 100_000


SCRIPT = """
import multiprocessing, sys
import torch
from orthoproxy.data.loading import iterate_batches, loader_options
if multiprocessing.get_start_method(allow_none=True) is None:
    multiprocessing.set_start_method(sys.argv[1])
print(list(iterate_batches(torch.utils.data.DataLoader(torch.arange(6), **loader_options(1)))))
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_script_without_a_main_guard_is_told_so(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIMEOUT_VARIABLE, "40")
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, tmp_path / "script.py", method], capture_output=True, text=True)
    assert done.returncode == 1 and "__main__" in done.stderr.splitlines()[-1] and "bootstrapping" not in done.stderr
