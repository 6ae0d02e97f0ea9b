"""Devices and threads to compute with."""

from __future__ import annotations

import os

from orthoproxy.core.errors import InputError


def choose_device(name: str) -> str:
    """Return an available device: for ``auto``, a GPU if there is one."""
    import torch  # takes seconds, and an exported model does without

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, found in available.items() if found)
    if not available.get(name.partition(":")[0]):
        raise InputError(f"no {name} device available", field="device", hint="use auto or cpu")
    return name


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
