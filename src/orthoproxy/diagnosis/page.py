"""The page of a diagnosis: one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence

from orthoproxy.diagnosis.findings import Diagnosis
from orthoproxy.reports.html import load_template, thumbnail_cache


def render_diagnosis(diagnoses: Sequence[Diagnosis]) -> str:
    """Write the page of one diagnosis, or of several side by side.

    Parameters
    ----------
    diagnoses
        One a run, at least one.

    Returns
    -------
    str
        HTML with its pictures and figures inside; it asks no other host for anything.

    Examples
    --------
    >>> from orthoproxy.diagnosis.findings import Check
    >>> checks = [Check("proxies", "not looked at: the loss has none")]
    >>> "<title>first" in render_diagnosis([Diagnosis("first", "test", 9, checks)])
    True
    """

    names = [check.name for check in diagnoses[0].checks]
    return load_template("diagnosis.html.j2").render(diagnoses=diagnoses, names=names, source=thumbnail_cache())
