"""Rank and number of the processes of a job, which `core.distributed` connects."""

from __future__ import annotations

import sys


def process_count() -> int:
    """Return the number W of connected processes, 1 without a distributed job."""
    dist = sys.modules.get("torch.distributed")  # not imported: a search with an exported model does without
    return dist.get_world_size() if dist and dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    """Return the rank of this process, from 0."""
    return sys.modules["torch.distributed"].get_rank() if process_count() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes files and prints."""
    return process_index() == 0
