"""Runs that die after a step, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import orthoproxy
from orthoproxy.runs.config import Config
from orthoproxy.runs.run_folder import RunFolder


class KilledError(BaseException):
    """Stands for SIGKILL: nothing handles it."""


class DyingRun(RunFolder):
    """A run folder whose process dies after the record of a step."""

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__(folder)
        self.step = step

    def log(self, record: dict[str, Any]) -> None:
        super().log(record)
        if record["step"] == self.step:
            raise KilledError


def kill_at(monkeypatch: pytest.MonkeyPatch, config: Config, folder: Path, step: int) -> None:
    """Train until the record of a step is written."""
    with monkeypatch.context() as patched, pytest.raises(KilledError):
        patched.setattr("orthoproxy.runs.train.RunFolder", lambda out: DyingRun(out, step))
        orthoproxy.train(config, folder)
