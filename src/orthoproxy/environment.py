"""What a run ran on: versions and machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from orthoproxy.processes import process_count


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
