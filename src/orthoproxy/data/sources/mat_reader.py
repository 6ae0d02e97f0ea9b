"""Reads a variable of a MATLAB file in a process of its own, since SciPy's reader can crash on damaged files.

Run by `orthoproxy.data.sources.cars` as a script, with the file and the variable; prints JSON. It imports nothing of the
package, which would take seconds.
"""

from __future__ import annotations

import json
import sys
from typing import Any

MEMORY = 4 * 10**9  # bytes; the published lists take a hundredth


def plain(value: Any) -> int | str:
    """Turn one entry into what JSON holds: a whole number, or text."""
    if hasattr(value, "item") and getattr(value, "size", 0) == 1:
        value = value.item()
    if isinstance(value, float) and value.is_integer():  # MATLAB's numbers are floating point unless told otherwise
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else str(value)


def read(path: str, variable: str) -> list[int | str] | dict[str, list[int | str]] | None:
    """Return the rows of a variable: a list, or a list for each field of a struct; None if it is not there."""
    import numpy as np
    from scipy.io import loadmat

    variables = loadmat(path, squeeze_me=True, variable_names=[variable])
    if variable not in variables:
        return None
    rows = np.atleast_1d(variables[variable])
    if not rows.dtype.names:
        return [plain(value) for value in rows]
    return {name: [plain(value) for value in rows[name]] for name in rows.dtype.names}


def main(path: str, variable: str) -> None:
    """Read, within bounds, and print what was found or what is wrong."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):
        pass  # where the system has no such bound
    try:
        print(json.dumps({"rows": read(path, variable)}))
    except Exception as error:  # of many types, whatever the damage makes SciPy trip over
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:300]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
