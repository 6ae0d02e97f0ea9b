"""What the pages share: their templates, and the pictures in them."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import jinja2

from orthoproxy.reports.pictures import data_uri, thumbnail
from orthoproxy.reports.words import interval, mean, number


def template(name: str) -> jinja2.Template:
    """Load a page's template, which may include ``page.css.j2`` and import from ``parts.html.j2``.

    Parameters
    ----------
    name
        A file of ``reports/templates``.

    Returns
    -------
    jinja2.Template
        Text that goes in is escaped; a name that is not given is an error.

    Examples
    --------
    >>> template("page.css.j2").render(colours={"ink": "#1c2630"}).split()[:2]
    [':root', '{']
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("orthoproxy.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(interval=interval, mean=mean, number=number, unbroken=_unbroken)
    return environment.get_template(name)


def thumbnails() -> Callable[[str], str | None]:
    """Return a function from an image file to a small picture for a page, or None; each file is read once.

    Examples
    --------
    >>> print(thumbnails()("nowhere.png"))
    None
    """

    @cache
    def of(path: str) -> str | None:
        image = thumbnail(path)
        return None if image is None else data_uri(image)

    return of


def _unbroken(sentence: str) -> str:
    """Keep a score's number, sign and interval on one line each."""
    return re.sub(r"(?<=\d) (?=%)|(?<=\d,) (?=\S+\])", "\N{NO-BREAK SPACE}", sentence)
