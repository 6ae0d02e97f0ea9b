"""All checks of a model, and the words for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator

from orthoproxy.diagnosis.confusions import check_confusions
from orthoproxy.diagnosis.crowding import check_proxies
from orthoproxy.diagnosis.findings import Check, Diagnosis
from orthoproxy.diagnosis.label_errors import check_labels
from orthoproxy.diagnosis.overfitting import check_overfitting
from orthoproxy.diagnosis.size import check_size
from orthoproxy.diagnosis.subject import Subject

CHECKS: tuple[Callable[[Subject], Check], ...] = (
    check_overfitting,
    check_proxies,
    check_confusions,
    check_labels,
    check_size,
)


def diagnose(subject: Subject) -> Diagnosis:
    """Look for what limits a model.

    Parameters
    ----------
    subject
        The model's embeddings of training and unseen images, and its proxies.

    Returns
    -------
    Diagnosis
        One check a question; those that found something say how much it is and what to try.

    Examples
    --------
    >>> import numpy as np
    >>> from orthoproxy.data import make_table
    >>> from orthoproxy.diagnosis import Embedded
    >>> images = Embedded(make_table(["1.png", "2.png"], ["cat", "cat"]), np.eye(2), np.eye(2))
    >>> [check.name for check in diagnose(Subject("run", images, None, "test", None, [])).checks]
    ['overfitting', 'proxies', 'confusions', 'labels', 'embedding size']
    """
    classes = 0 if subject.unseen is None else len(subject.unseen.names)
    return Diagnosis(subject.name, subject.unseen_are, classes, [check(subject) for check in CHECKS])


def lines(diagnosis: Diagnosis, width: int = 100) -> Iterator[str]:
    """Say in short what was found, the largest effect first.

    Parameters
    ----------
    diagnosis
        Of a run.
    width
        Letters in a line.

    Yields
    ------
    str
        A line.

    Examples
    --------
    >>> print(*lines(Diagnosis("first", "test", 9, [Check("proxies", "not looked at: the loss has none")])), sep="\\n")
    first: nothing found; looked at 9 unseen classes (test)
      proxies: not looked at: the loss has none
    """
    found = diagnosis.findings
    count = {0: "nothing found", 1: "1 finding"}.get(len(found), f"{len(found)} findings, the largest effect first")
    classes = f"{diagnosis.unseen_classes:,} unseen classes ({diagnosis.unseen_are})"
    yield f"{diagnosis.name}: {count}; looked at {classes if diagnosis.unseen_classes else 'no unseen classes'}"
    for place, check in enumerate(found, 1):
        finding = check.finding
        if finding is None:
            continue
        yield from _wrapped(f"{place}. {finding.title}: {finding.size}", "  ", width)
        yield from _wrapped(f"seen: {check.summary}", "     ", width)
        yield from _wrapped(f"try:  {finding.advice[0]}", "     ", width)
    for check in diagnosis.checks:
        if check.finding is None:
            measured = f"nothing found. {check.summary[:1].upper()}{check.summary[1:]}"
            said = measured if check.state == "nothing found" else check.summary
            yield from _wrapped(f"{check.name}: {said}", "  ", width)


def _wrapped(text: str, indent: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=f"{indent}   ", break_on_hyphens=False)
