"""What a diagnosis says: checks with what they measured, and findings with evidence, pictures and advice."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from orthoproxy.evaluation import Estimate
from orthoproxy.reports.html import Plot
from orthoproxy.reports.text import interval, mean


@dataclass(frozen=True)
class Shot:
    """A picture to show: its file, what stands below it, and whether it is the one that is asked about."""

    path: str
    label: str
    note: str = ""
    asked: bool = False


@dataclass(frozen=True)
class Finding:
    """Something that limits the model.

    Parameters
    ----------
    title
        What it is, in one sentence.
    effect
        How much is at stake, as a fraction of `of`; findings are ranked by it.
    of
        What the effect is a share of, for example ``of unseen queries``.
    evidence
        Sentences with the numbers.
    advice
        What to try, the most promising first.
    plot
        A figure, or None.
    heads, rows
        A table; empty for none.
    unit
        Of the effect: ``%``, or ``points`` for a difference of scores.
    shots
        Rows of pictures.
    shots_say
        What is to be seen in them.

    Examples
    --------
    >>> Finding("Two classes are one", Estimate(0.1, 0.05, 0.15), "of unseen queries", ["a, b"], ["Merge them."]).size
    '10.0 % [5.0, 15.0] of unseen queries'
    """

    title: str
    effect: Estimate
    of: str
    evidence: list[str]
    advice: list[str]
    plot: Plot | None = None
    heads: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    shots: list[list[Shot]] = field(default_factory=list)
    shots_say: str = ""
    unit: str = "%"

    @property
    def size(self) -> str:
        """The effect in words."""
        x = self.effect
        return f"{mean(x)} {self.unit} {interval(x)} {self.of}"


@dataclass(frozen=True)
class Check:
    """Something that was looked at.

    Parameters
    ----------
    name
        A word for it.
    summary
        What was measured, in a sentence; or why it was not.
    measured
        The numbers; empty where it was not looked at.
    finding
        What is wrong, if anything.
    unclear
        Whether the measurement is too weak to say that there is nothing.

    Examples
    --------
    >>> Check("proxies", "not looked at: the loss has none").state
    'not looked at'
    """

    name: str
    summary: str
    measured: dict[str, Any] = field(default_factory=dict)
    finding: Finding | None = None
    unclear: bool = False

    @property
    def looked_at(self) -> bool:
        """Whether there was something to measure."""
        return bool(self.measured)

    @property
    def state(self) -> str:
        """What became of it: ``found``, ``nothing found``, ``cannot be told`` or ``not looked at``."""
        if self.finding:
            return "found"
        if not self.looked_at:
            return "not looked at"
        return "cannot be told" if self.unclear else "nothing found"

    def to_dict(self) -> dict[str, Any]:
        """Return what is neither figure nor picture, as ``--json`` writes it."""
        finding = self.finding and {
            "title": self.finding.title,
            "effect": asdict(self.finding.effect),
            "of": self.finding.of,
            "unit": self.finding.unit,
            "evidence": self.finding.evidence,
            "advice": self.finding.advice,
        }
        return {
            "name": self.name,
            "state": self.state,
            "summary": self.summary,
            "measured": self.measured,
            "finding": finding,
        }


@dataclass(frozen=True)
class Diagnosis:
    """A run's checks, and what was found, the largest effect first.

    Examples
    --------
    >>> Diagnosis("run", "test", 9, [Check("proxies", "not looked at: the loss has none")]).findings
    []
    """

    name: str
    unseen_are: str
    unseen_classes: int
    checks: list[Check]

    @property
    def findings(self) -> list[Check]:
        """The checks that found something, the largest effect first."""
        found = [(check.finding.effect.value, check) for check in self.checks if check.finding]
        return [check for _, check in sorted(found, key=lambda pair: -pair[0])]

    def to_dict(self) -> dict[str, Any]:
        """Return it as ``--json`` writes it."""
        unseen = {"split": self.unseen_are, "classes": self.unseen_classes}
        return {
            "name": self.name,
            "unseen": unseen,
            "findings": [check.name for check in self.findings],
            "checks": [check.to_dict() for check in self.checks],
        }
