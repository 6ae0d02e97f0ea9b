"""Run all checks; summarize them for a terminal and on a page."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from functools import cache

from orthoproxy.diagnosis.confusions import check_confusions
from orthoproxy.diagnosis.findings import Check, Diagnosis
from orthoproxy.diagnosis.inputs import DiagnosisInput
from orthoproxy.diagnosis.label_errors import check_labels
from orthoproxy.diagnosis.overfitting import check_overfitting
from orthoproxy.diagnosis.proxy_collapse import check_proxies
from orthoproxy.reports.html import load_template, thumbnail_uri

CHECKS = (check_overfitting, check_proxies, check_confusions, check_labels)


def diagnose(model: DiagnosisInput) -> Diagnosis:
    """Find out what limits a model.

    Parameters
    ----------
    model
        The model's embeddings of training images and of unseen classes, and its proxies.

    Returns
    -------
    Diagnosis
        One check each for overfitting, collapsed proxies, confused classes and label errors.

    Examples
    --------
    >>> import numpy as np
    >>> from orthoproxy.data import make_table
    >>> from orthoproxy.diagnosis import EmbeddedSplit
    >>> split = EmbeddedSplit(make_table(["1.png", "2.png"], ["cat", "cat"]), np.eye(2), np.eye(2))
    >>> [check.name for check in diagnose(DiagnosisInput("run", split, None, "test", None, [])).checks]
    ['overfitting', 'proxies', 'confusions', 'labels']
    """
    classes = 0 if model.unseen is None else len(model.unseen.names)
    return Diagnosis(model.name, model.unseen_split, classes, [check(model) for check in CHECKS])


def summary_lines(diagnosis: Diagnosis, width: int = 100) -> Iterator[str]:
    """Yield a short summary for a terminal, the most severe finding first."""
    unseen = f"{diagnosis.num_unseen_classes:,} unseen classes ({diagnosis.unseen_split})"
    findings = diagnosis.findings
    yield f"{diagnosis.name}: {len(findings)} finding{'' if len(findings) == 1 else 's'}, {unseen}"
    for rank, (check, finding) in enumerate(findings, 1):
        yield from _wrap(f"{rank}. {finding.title}: {finding.effect} {finding.scope}", "  ", width)
        yield from _wrap(_join_evidence(check), "     ", width)
        yield from _wrap(f"try: {finding.advice[0]}", "     ", width)
    for check in diagnosis.checks:
        if check.finding is None:
            details = "; ".join(text for text in (check.reason, _join_evidence(check)) if text)
            yield from _wrap(f"{check.name}: {check.status} ({details})", "  ", width)


def render_diagnosis(diagnoses: Sequence[Diagnosis]) -> str:
    """Render one diagnosis, or several side by side, as self-contained HTML."""
    compared = list(zip(*(diagnosis.checks for diagnosis in diagnoses), strict=True))
    page = load_template("diagnosis.html.j2")
    return page.render(diagnoses=diagnoses, compared=compared, thumbnail=cache(thumbnail_uri))


def _join_evidence(check: Check) -> str:
    return "; ".join(f"{name} {value}" for name, value in check.evidence.items())


def _wrap(text: str, indent: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=f"{indent}   ", break_on_hyphens=False)
