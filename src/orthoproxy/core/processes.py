"""Which of the connected processes this is; `distributed` connects them."""

from __future__ import annotations

import sys


def process_count() -> int:
    """Return W, the number of connected processes."""
    dist = sys.modules.get("torch.distributed")  # not imported here, as a search may do without PyTorch
    return dist.get_world_size() if dist and dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    """Return the rank of this process, from 0."""
    return sys.modules["torch.distributed"].get_rank() if process_count() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes files and prints."""
    return process_index() == 0
