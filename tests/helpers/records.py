"""What tests of faults tried and what was lost, written down for docs/reliability.md, which is generated from it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

VARIABLE = "ORTHOPROXY_RECORDS"


def record(section: str, tried: str, lost: str = "nothing", **details: Any) -> None:
    """Append a line to the file that the environment variable ORTHOPROXY_RECORDS names; without it, do nothing.

    A line is JSON: ``section``, ``tried``, ``lost``, ``test`` (pytest's name of the test that wrote it) and the
    details under their own names. Lines of the same section and what was tried are counted together on the page, so
    what differs from one time to the next belongs to the details. Call it once a try, after the outcome is known: also
    where something was lost, before the assertion that says so.

    Parameters
    ----------
    section
        Of the page: ``repeatable``, ``faults``, ``nothing let in`` or ``load``.
    tried
        What was done, in a few words that are the same each time; for example "killed in the middle of an epoch".
    lost
        What was lost, in a few words.
    details
        What JSON can hold; for example ``moment="step 5"``. ``times``, where one line stands for so many tries.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return
    test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" (")[0]
    line = json.dumps({"section": section, "tried": tried, "lost": lost, "test": test, **details}) + "\n"
    with Path(path).open("ab", buffering=0) as file:  # one write, so that lines of several processes stay whole
        file.write(line.encode())
