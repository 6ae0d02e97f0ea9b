"""Versions, machine and data that a run used."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int64

from orthoproxy.core.boxes import split_box
from orthoproxy.core.distributed import process_count

DATA = "data"  # key of the fingerprint, next to the entries of `environment`


def environment(device: torch.device | str = "cpu") -> dict[str, str]:
    """Describe versions and machine, name to text; of GPUs only `device`, as asking allocates memory on it."""
    libraries = ("torch", "torchvision", "timm", "numpy", "pillow", "pytorch-metric-learning")
    return {
        "orthoproxy": _version("orthoproxy") or "not installed",
        "revision": _revision(),
        "python": platform.python_version(),
        **{name: version for name in libraries if (version := _version(name))},
        "system": platform.platform(),
        "cpu": f"{_cpu()}, {torch.backends.cpu.get_cpu_capability()}",
        "cores": str(os.cpu_count()),
        "processes": str(process_count()),
        "threads": str(torch.get_num_threads()),
        "memory": _memory(),
        "gpu": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "none",
    }


def file_versions(paths: Sequence[str | Path]) -> Int64[np.ndarray, "n 2"]:
    """Return size and modification time (ns) of each file, -1 if missing; for the main process only, as it is slow."""
    versions = np.full((len(paths), 2), -1, dtype=np.int64)
    for row, path in enumerate(paths):
        with suppress(OSError):
            found = os.stat(split_box(path)[0])  # noqa: PTH116 -- of 100,000s
            versions[row] = found.st_size, found.st_mtime_ns
    return versions


def fingerprint(table: pd.DataFrame, versions: Int64[np.ndarray, "n 2"]) -> str:
    """Return the number of images and a hash of relative paths, columns and file sizes, but not of pixels."""
    paths = table["path"].tolist()
    root = os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120 -- of 100,000s
    digest = hashlib.sha256()
    optional = ["category"] if (table["category"] != "").any() else []  # hashes of earlier versions stay valid
    columns = [table[name].tolist() for name in ("label", "split", "role", "group", *optional)]
    for path, size, *values in zip(paths, versions[:, 0].tolist(), *columns, strict=True):
        digest.update("\0".join([os.path.relpath(path, root), *values, str(size)]).encode() + b"\n")
    return f"{len(paths):,} images, {digest.hexdigest()[:16]}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _memory() -> str:
    if not hasattr(os, "sysconf"):  # Windows
        return "unknown"
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"


def _revision() -> str:
    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        result = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=False)
        return result.stdout.strip() if result.returncode == 0 else ""

    try:
        # an installed package inside somebody else's repository is not of that repository's revision
        if not git("ls-files", Path(__file__).name):
            return "not a checkout"
        return git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain", ".") else "")
    except OSError:
        return "no git"


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
