"""What a run ran on: versions and machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import pandas as pd
import torch

from orthoproxy.core.distributed import process_count

DATA = "data"  # the name of the data's fingerprint beside versions and machine
MACHINE = ("system", "processor", "cores", "processes", "threads", "memory", "gpu")


def environment() -> dict[str, str]:
    """Describe versions and machine, to be kept beside results.

    Returns
    -------
    dict
        Names to text: orthoproxy's version and git revision (where it runs from a checkout), Python, the libraries
        that numbers depend on, processor, cores, processes that trained together, memory, and GPU.

    Examples
    --------
    >>> sorted(environment())[:3]
    ['cores', 'gpu', 'memory']
    """
    libraries = ("torch", "torchvision", "timm", "numpy", "pillow", "pytorch-metric-learning")
    return {
        "orthoproxy": importlib.metadata.version("orthoproxy"),
        "revision": _revision(),
        "python": platform.python_version(),
        **{name: version for name in libraries if (version := _version(name))},
        "system": platform.platform(),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "processes": str(process_count()),
        "threads": str(torch.get_num_threads()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def fingerprint(table: pd.DataFrame) -> str:
    """Tell images from others by their names, labels and sizes, without reading them.

    An image that was replaced by another one of as many bytes goes unnoticed here.

    Parameters
    ----------
    table
        As `data.make_table`. Where the images lie does not matter, only how they lie to each other.

    Returns
    -------
    str
        Their number, and sixteen hexadecimal digits.

    Examples
    --------
    >>> from orthoproxy.data import make_table
    >>> fingerprint(make_table(["a.png", "b.png"], ["a", "b"]))
    '2 images, 01d21741150adcc3'
    """
    paths = table["path"].tolist()
    root = os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120 -- of 100,000s
    digest = hashlib.sha256()
    columns = [table[name].tolist() for name in ("label", "split", "role", "group")]
    for path, *told in zip(paths, *columns, strict=True):
        digest.update("\0".join([os.path.relpath(path, root), *told, str(_size(path))]).encode() + b"\n")
    return f"{len(paths):,} images, {digest.hexdigest()[:16]}"


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return -1


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _revision() -> str:
    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        # an installed package inside somebody else's repository is not of that repository's revision
        if not git("ls-files", Path(__file__).name):
            return "not a checkout"
        return git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain", ".") else "")
    except OSError:
        return "no git"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
