"""Names in a list stay inside the folder that the list is about: whoever wrote it may not point elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from orthoproxy.core.errors import InputError


def place_inside(folder: Path, name: str) -> str | None:
    """Return where a listed file lies, if that is inside a folder.

    Goes by the name alone: what was checked is what is returned, so that ``link/../x`` cannot mean another place than
    it seems. A link that lies in the folder may lead out of it, since whoever made it may as well have moved the files.

    Parameters
    ----------
    folder
        Absolute.
    name
        As listed: relative to the folder, or absolute.

    Returns
    -------
    str or None
        The file's path; None if it leads out of the folder.

    Examples
    --------
    >>> place_inside(Path("/birds"), "wren/1.jpg"), place_inside(Path("/birds"), "wren/../../secret.png")
    ('/birds/wren/1.jpg', None)
    """
    if ".." not in name and not os.path.isabs(name):  # noqa: PTH117 -- many names; Path takes ten times as long
        return str(folder / name)
    place = os.path.normpath(folder / name)
    starts = (str(root).rstrip(os.sep) + os.sep for root in (os.path.normpath(folder), folder.resolve()))
    return place if place.startswith(tuple(starts)) else None


def place_all(folder: Path, names: Iterable[str], where: Path) -> list[str]:
    """Return where the files of a published list lie.

    Parameters
    ----------
    folder
        Absolute; what the names start from.
    names
        As listed.
    where
        The list, for the error.

    Raises
    ------
    InputError
        For the first name that leads out of the folder.

    Examples
    --------
    >>> place_all(Path("/birds"), ["wren/1.jpg", "/etc/passwd"], Path("images.txt"))
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: data.root: images.txt lists '/etc/passwd', which is not in /birds; take the list as \
it was published
    """
    places = []
    for name in names:
        place = place_inside(folder, name)
        if place is None:
            raise InputError(
                f"data.root: {where} lists {name!r}, which is not in {folder}; take the list as it was published"
            )
        places.append(place)
    return places
