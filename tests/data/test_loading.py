"""Workers that run out of memory, persistent workers, and the time limit; tests/faults kills and crashes them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from errors import error_of
from torch.utils.data import DataLoader, Dataset

from orthoproxy.data.datasets import PathList
from orthoproxy.data.loading import TIMEOUT_VARIABLE, iterate_batches, loader_options


class OutOfMemory(Dataset):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, row: int) -> object:
        raise MemoryError


def test_lack_of_memory_stays_what_it_is() -> None:
    with pytest.raises(MemoryError):
        list(iterate_batches(DataLoader(OutOfMemory(), batch_size=2, **loader_options(1))))


def test_persistent_workers_serve_several_epochs() -> None:
    loader = DataLoader(torch.arange(6), batch_size=3, **loader_options(1, persistent_workers=True))
    for _ in range(2):
        assert [batch.tolist() for batch in iterate_batches(loader)] == [[0, 1, 2], [3, 4, 5]]


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


def test_the_timeout_is_a_number_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("soon", "-1", "nan", "inf"):
        monkeypatch.setenv(TIMEOUT_VARIABLE, value)
        assert error_of(loader_options, 1).field == TIMEOUT_VARIABLE


def test_a_list_of_paths_is_a_sequence() -> None:
    paths = ["a.png", "", os.fsdecode(b"\xff/\xc3\xbc.jpg"), "c"]
    kept = PathList(paths)
    assert (list(kept), kept[-2], len(kept)) == (paths, paths[2], 4)
    with pytest.raises(IndexError):
        kept[4]
    assert list(PathList([])) == []
