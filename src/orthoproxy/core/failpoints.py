"""Places where the process can be killed as by a power cut, so that tests need no luck to hit them.

The environment variable ``ORTHOPROXY_FAILPOINT`` names a place and how often it is passed first: with
``last.ckpt flushed:3`` the process ends by SIGKILL when it comes there for the third time. Nothing is closed, flushed
or said. Without the variable a place costs a microsecond.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

VARIABLE = "ORTHOPROXY_FAILPOINT"


def failpoint(place: str, first: Callable[[], object] | None = None) -> None:
    """End the process here, if this is the place and the time that ``ORTHOPROXY_FAILPOINT`` names.

    Parameters
    ----------
    place
        Its name. Files have ``NAME half``, ``NAME unflushed``, ``NAME flushed`` and ``NAME renamed``.
    first
        What to do before the end, for example to write half of what was to be written.

    Examples
    --------
    >>> failpoint("a place that nobody asked for")
    """
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    name, _, count = wanted.rpartition(":")
    if name != place:
        return
    if int(count) > 1:
        os.environ[VARIABLE] = f"{name}:{int(count) - 1}"
        return
    if first is not None:
        first()
    os.kill(os.getpid(), signal.SIGKILL)
