"""Which file a data loading worker is reading: the main process names it if the worker dies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

LONGEST_PATH = 4096  # bytes
REPLACE_FILE = "replace the file, or skip unreadable images"

_memory: np.ndarray | None = None  # of a worker, shared with the main process


def write_to(memory: np.ndarray) -> None:
    """Let `noting_file` write to memory that the main process shares."""
    global _memory
    _memory = memory


@contextmanager
def noting_file(path: str | Path) -> Iterator[None]:
    """Note in a worker which file is being read."""
    _note(os.fsencode(path))
    try:
        yield
    finally:
        _note(b"")


def _note(path: bytes) -> None:
    if _memory is not None:
        text = path[: LONGEST_PATH - 1] + b"\0"
        _memory[: len(text)] = np.frombuffer(text, np.uint8)
