"""Results of a diagnosis as data: checks with their evidence, and findings with severity and advice."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from orthoproxy.evaluation import Estimate
from orthoproxy.reports.html import Plot
from orthoproxy.reports.text import percent, points


@dataclass(frozen=True)
class Thumbnail:
    """An image to show, with its class, a note, and whether it is the query or suspect of its row."""

    path: str
    label: str
    note: str = ""
    is_query: bool = False


@dataclass(frozen=True)
class Finding:
    """Something that limits the model; `severity` is the size of the effect as a fraction of `scope`."""

    title: str
    severity: Estimate
    scope: str
    advice: list[str]
    unit: Literal["%", "points"] = "%"
    plot: Plot | None = None
    columns: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    thumbnails: list[list[Thumbnail]] = field(default_factory=list)
    thumbnails_caption: str = ""

    @property
    def effect(self) -> str:
        """The severity with its unit and interval."""
        return percent(self.severity) if self.unit == "%" else points(self.severity)


@dataclass(frozen=True)
class Check:
    """The result of one check: measured values, a finding if something is wrong, or why it was skipped."""

    name: str
    evidence: dict[str, str] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    finding: Finding | None = None
    reason: str = ""

    @property
    def status(self) -> str:
        """``found``, ``nothing found``, ``inconclusive`` or ``skipped``."""
        if self.finding:
            return "found"
        if not self.measured:
            return "skipped"
        return "inconclusive" if self.reason else "nothing found"

    def to_dict(self) -> dict[str, Any]:
        """Return everything except figures and images, as the JSON output has it."""
        data = {name: getattr(self, name) for name in ("name", "status", "reason", "measured", "finding")}
        if found := self.finding:
            kept = {name: getattr(found, name) for name in ("title", "scope", "unit", "advice")}
            data["finding"] = {**kept, "severity": asdict(found.severity)}
        return data


@dataclass(frozen=True)
class Diagnosis:
    """The checks of a run.

    Parameters
    ----------
    name
        Name of the run.
    unseen_split, num_unseen_classes
        Where the unseen classes are from, and their number; 0 if there are none.
    checks
        All checks, in a fixed order.

    Examples
    --------
    >>> Diagnosis("run", "test", 9, [Check("proxies", reason="the loss has no proxies")]).findings
    []
    """

    name: str
    unseen_split: str
    num_unseen_classes: int
    checks: list[Check]

    @property
    def findings(self) -> list[tuple[Check, Finding]]:
        """The checks with a finding, the most severe first."""
        found = [(check, check.finding) for check in self.checks if check.finding]
        return sorted(found, key=lambda pair: -pair[1].severity.value)

    def to_dict(self) -> dict[str, Any]:
        """Return everything except figures and images, as the JSON output has it."""
        return {
            "name": self.name,
            "unseen": {"split": self.unseen_split, "classes": self.num_unseen_classes},
            "findings": [check.name for check, _ in self.findings],
            "checks": [check.to_dict() for check in self.checks],
        }
