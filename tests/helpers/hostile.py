"""Files that would run a program if anything in them were unpickled or imported."""

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orthoproxy.cli.main import main


class Trap:
    """Unpickling it would write a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


as_torch: Callable[[object, Path], None] = torch.save


def as_pickle(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, 2))


def as_numpy(content: object, path: Path) -> None:
    """An array of objects, which NumPy would unpickle if it were allowed to."""
    with path.open("wb") as file:
        np.save(file, np.array([content], dtype=object))


def as_npz(content: object, path: Path) -> None:
    """A zip archive in an array's place, with such an array in it."""
    with path.open("wb") as file:
        np.savez(file, a=np.array([content], dtype=object))


WAYS: dict[str, Callable[[object, Path], None]] = {
    "torch": as_torch,
    "old torch": partial(torch.save, _use_new_zipfile_serialization=False),
    "pickle": as_pickle,
    "array of objects": as_numpy,
    "archive of arrays": as_npz,
}


def rejected(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must end as bad input, without a traceback; return its message."""
    capsys.readouterr()
    code, said = main([str(word) for word in arguments]), capsys.readouterr()
    assert code == 2, said.err
    assert "Traceback" not in said.err
    return said.err[said.err.index("orthoproxy: ") :].strip()
