"""What the page of a study says: the answers, what is missing, which settings were tried."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from orthoproxy.core.safe_parsing import parse_yaml
from orthoproxy.reports.text import FEW_CLASSES, metric_name, negate, points
from orthoproxy.studies.comparison import Row, judged_results
from orthoproxy.studies.plan import Cell, Options, Result, Study, chosen_setting, tuning_results, validation_scores
from orthoproxy.studies.statistics import SEEDS_TO_SPEAK_OF_NEW_ONES, reach
from orthoproxy.studies.table import p_words, setting_words

LEVEL_OF_ERROR = 0.05  # of the whole family of comparisons
NAMED_AT_MOST = 6
FREEZE = "encoder.freeze"
BUSY = 2  # times as long for the same work is more than noise


@dataclass(frozen=True)
class Tried:
    """A setting and its scores on the validation classes, as fractions; how many cells are missing, or failed."""

    method: str
    setting: str
    scores: list[float]
    missing: int
    failed: int
    chosen: bool

    @property
    def mean(self) -> float:
        """Over the tuning seeds."""
        return float(np.mean(self.scores)) if self.scores else math.nan


def answers(rows: Sequence[Row], compared: Sequence[str]) -> list[tuple[str, str]]:
    """Say in a sentence each what the comparisons named before running came to.

    Parameters
    ----------
    rows
        From `rows_of`, by the metric of the study.
    compared
        The methods named.

    Returns
    -------
    list of (kind, sentence)
        The kind is ``better``, ``worse``, ``unclear`` or, where results are missing, ``none``.

    Examples
    --------
    >>> answers([Row("on", "recall@1", False, None)], ["on"])
    [('none', 'on: not judged yet.')]
    """
    by_name = {row.method: row for row in rows}
    baseline = next((row.method for row in rows if row.baseline), "the baseline")
    partners = {name: by_name[name].against or baseline for name in compared}
    return [_answer(by_name[name], partner, by_name.get(partner)) for name, partner in partners.items()]


def _answer(row: Row, baseline: str, partner: Row | None) -> tuple[str, str]:
    if row.difference is None:
        lacking = row if partner is None or not row.seeds else partner
        return "none", f"{row.method}: {'' if lacking is row else f'{baseline} '}{_why_not(lacking)}."
    gain, seeds = row.difference.estimate, len(row.difference.by_seed)
    score, p = metric_name(row.metric), f"p = {p_words(row.holm_p)} after Holm"
    with_seeds = f"ahead with {row.difference.ahead} of {seeds} seed{'s' if seeds > 1 else ''}"
    these = "" if seeds >= SEEDS_TO_SPEAK_OF_NEW_ONES else " with these seeds"
    if math.isnan(row.holm_p) or row.holm_p > LEVEL_OF_ERROR:
        change = f"{score} {points(gain, sign=True)}, {p}, {with_seeds}"
        return "unclear", f"{row.method} against {baseline}: no difference shown. {change}."
    if gain.low <= 0 <= gain.high:
        change = f"{score} {points(gain, sign=True)}, {p}, {with_seeds}"
        beyond = "but not beyond these seeds: the interval, which draws seeds too, includes 0"
        return "unclear", f"{row.method} and {baseline} differ on new classes, {beyond}. {change}."
    if gain.value > 0:
        return (
            "better",
            f"{row.method} is better than {baseline}{these}: {score} {points(gain, sign=True)}, {p}, {with_seeds}.",
        )
    loss = f"{score} lower by {points(negate(gain))}"
    return "worse", f"{row.method} is worse than {baseline}{these}: {loss}, {p}, {with_seeds}."


def _why_not(row: Row) -> str:
    if row.seeds:
        return "was judged with other seeds"
    return "could not be trained" if row.failed else "not judged yet"


def notes(study: Study, results: Sequence[Result]) -> list[str]:
    """Say what a reader has to know before the numbers: what is missing or failed, few seeds, a frozen encoder.

    Parameters
    ----------
    study, results
        As in `rows_of`.

    Examples
    --------
    >>> from orthoproxy.studies.plan import Method
    >>> notes(Study("so", {"off": Method()}, "off"), [])[0]
    '0 of 1 cells are there, 0 of 1 judged on the test classes. Not yet: off_seed0.'
    """
    of_study, of_results = (_missing, _first_kept, _judged_too), (_few_classes, _failed, _again, _precisions, _busy)
    said = [*(say(study, results) for say in of_study), *(say(results) for say in of_results)]
    said = [note for note in said if note]
    frozen = frozen_methods(study, results)
    if frozen and len(frozen) == len(study.methods):
        kept = "its features stayed as they were, and only the projection and the loss\u2019s own vectors were trained"
        said.append(f"The encoder was frozen: {kept}. What holds here need not hold when the whole encoder is trained.")
    elif frozen:
        said.append(f"The encoder was frozen in {', '.join(frozen)}, and trained in the others.")
    if 0 < len(study.seeds) < SEEDS_TO_SPEAK_OF_NEW_ONES:
        said.append(reach(len(study.seeds)))
    return said


def frozen_methods(study: Study, results: Sequence[Result]) -> list[str]:
    """List the methods with ``encoder.freeze``, by their results; those without one by the options of the study.

    Parameters
    ----------
    study, results
        As in `rows_of`.

    Examples
    --------
    >>> from orthoproxy.studies.plan import Method
    >>> frozen_methods(Study("so", {"off": Method(), "on": Method({"encoder.freeze": True})}, "off"), [])
    ['on']
    """
    named = {result["method"]: result["options"].get(FREEZE, False) for result in results}
    return [name for name in study.methods if named.get(name, _to_be_frozen(study, name))]


def _to_be_frozen(study: Study, method: str) -> bool:
    """Look into the base recipe, the method's part of one, and the options, of which the last one counts."""
    frozen = False
    for path in filter(None, (study.base, study.methods[method].recipe)):
        frozen = section_of(path, "encoder").get("freeze", frozen)
    setting = study.methods[method].settings[0]
    return bool(study.options(Cell(method, setting, 0)).get(FREEZE, frozen))


def section_of(recipe: Path, name: str) -> Options:
    """Read a section of a recipe; empty where that cannot be read, as a page is written without its recipes too.

    Parameters
    ----------
    recipe, name
        The file, and ``data`` or ``encoder``, say.

    Examples
    --------
    >>> section_of(Path("nowhere.yaml"), "data")
    {}
    """
    with contextlib.suppress(OSError, TypeError, KeyError, ValueError, yaml.YAMLError):
        section = parse_yaml(recipe.read_text(encoding="utf-8"))[name]
        return section if isinstance(section, dict) else {}
    return {}


def tried_settings(study: Study, results: Sequence[Result]) -> list[Tried]:
    """List every setting of every method with its scores on the validation classes.

    Parameters
    ----------
    study, results
        As in `rows_of`.

    Returns
    -------
    list of Tried
        In the order of the study; none is left out.

    Examples
    --------
    >>> from orthoproxy.studies.plan import Method
    >>> study = Study("so", {"on": Method(choose={"loss.margin": [0.1, 1]})}, "on", tuning_seeds=[0])
    >>> [tried.setting for tried in tried_settings(study, [])]
    ['loss.margin 0.1', 'loss.margin 1']
    """
    listed = []
    for name, method in study.methods.items():
        chosen = chosen_setting(study, results, name)
        for setting in method.settings:
            found = tuning_results(study, results, name, setting).values()
            scores, missing = validation_scores(found, study.metric), sum(result is None for result in found)
            failed = len(found) - missing - len(scores)
            listed.append(Tried(name, _words(setting or method.set), scores, missing, failed, setting == chosen))
    return listed


def _missing(study: Study, results: Sequence[Result]) -> str:
    known = {result["cell"] for result in results}
    chosen = {name: chosen_setting(study, results, name) for name in study.methods}
    later = [
        cell for name, setting in chosen.items() if setting is not None for cell in study.later_cells(name, setting)
    ]
    not_yet = [cell.name for cell in [*study.first_cells, *later] if cell.name not in known]
    open_yet = {cell.method for cell in study.first_cells if cell.name not in known}
    unknown = sum(len(study.later_cells(name, {})) for name in open_yet if chosen[name] is None)
    judged = sum(len(judged_results(study, results, name)) for name in study.methods)
    to_judge = len(study.seeds) * len(study.methods)
    if not not_yet and not unknown and judged == to_judge:
        return ""
    total = len(study.first_cells) + len(later) + unknown
    there = f"{total - len(not_yet) - unknown} of {total} cells are there"
    said = f"{there}, {judged} of {to_judge} judged on the test classes."
    return f"{said} Not yet: {_some(not_yet)}." if not_yet else said


def _failed(results: Sequence[Result]) -> str:
    failed = sorted(f"{result['cell']} ({result['failed']})" for result in results if result.get("failed"))
    if not failed:
        return ""
    then = "A setting that failed with a tuning seed cannot be chosen; other seeds are missing from the means"
    return f"These cells could not be trained: {_some(failed)}. {then}."


def _judged_too(study: Study, results: Sequence[Result]) -> str:
    """Name what was judged on the test classes and should not have been."""
    known = {result["cell"] for name in study.methods for result in judged_results(study, results, name)}
    others = sorted(result["cell"] for result in results if result.get("test") and result["cell"] not in known)
    if not others:
        return ""
    return f"Judged on the test classes without being chosen, and left out of the table: {_some(others)}."


def _first_kept(study: Study, results: Sequence[Result]) -> str:
    """Count the judged runs of which the first epoch was kept, since validation went down from there."""
    judged = [result for method in study.methods for result in judged_results(study, results, method)]
    known = [kept for result in judged if (kept := _kept_first(result)) is not None]
    first = sum(known)
    if not first:
        return ""
    return (
        f"{first} of {len(known)} judged runs were best on validation classes after their first epoch and are "
        "judged so: more training made them worse, so they say little about what a method does in training."
    )


def _kept_first(result: Result) -> bool | None:
    """Tell whether the first epoch was kept; None where the curve does not have what it was chosen by."""
    monitor = result["options"].get("training.monitor", "map@r")
    scores = [point[monitor] for point in result["curve"] if monitor in point]
    return scores[0] == max(scores) if len(scores) > 1 else None


def _again(results: Sequence[Result]) -> str:
    """Name what had to be trained a second time, since its run was gone when the test classes were judged."""
    again = sorted(result["cell"] for result in results if result.get("trained_again"))
    if not again:
        return ""
    of_first = "What they show of validation classes, time and proxies is of the first"
    return (
        f"On the test classes, a second training with the same configuration was judged of: {_some(again)}. {of_first}."
    )


def _few_classes(results: Sequence[Result]) -> str:
    fewest = min((len(result["validation"]["classes"]) for result in results if result.get("validation")), default=0)
    if not 0 < fewest < FEW_CLASSES:
        return ""
    return f"Only {fewest} validation classes chose settings and epochs: the choice is unreliable."


def _precisions(results: Sequence[Result]) -> str:
    """Say when cells were computed in different precisions; older results do not tell."""
    named = [str(result.get("environment", {}).get("precision", "")) for result in results]
    counts = {name: named.count(name) for name in sorted({*named} - {""})}
    if len(counts) < 2:
        return ""
    told = ", ".join(f"{count} in {name}" for name, count in counts.items())
    return f"Cells were trained in different precisions: {told}. To compare like with like, set training.precision."


def _busy(results: Sequence[Result]) -> str:
    """Say when equal work took very unequal time, so that nobody compares the seconds of methods."""
    took: dict[tuple[str, str], list[float]] = {}
    for result in results:
        if result.get("seconds"):
            took.setdefault((result["method"], _words(result["setting"])), []).append(result["seconds"])
    shortest, longest = max(((min(x), max(x)) for x in took.values()), key=lambda x: x[1] / x[0], default=(1, 1))
    if longest < BUSY * shortest:
        return ""
    return (
        f"Runs of one method with one setting took from {shortest:,.0f} to {longest:,.0f} seconds: other work ran "
        "beside them, or other machines were used. Compare methods by images, not by seconds."
    )


def worse_than_untrained(rows: Sequence[Row]) -> str:
    """Name the methods that training made worse on new classes; nothing where there is none.

    Parameters
    ----------
    rows
        From `rows_of`.

    Examples
    --------
    >>> worse_than_untrained([Row("on", "recall@1", False, None)])
    ''
    """
    worse = [row for row in rows if row.gain and row.gain.high < 0]
    if not worse:
        return ""
    score = metric_name(worse[0].metric)
    told = [f"{row.method} (lower by {points(negate(row.gain))})" for row in worse if row.gain]
    return f"Worse than the untrained encoder with all its features, by {score} on new classes: {_some(told)}."


def _some(names: Sequence[str]) -> str:
    """List names, the first few."""
    more = f" and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else ""
    return ", ".join(names[:NAMED_AT_MOST]) + more


def _words(setting: Options) -> str:
    return setting_words(setting) or "as the recipe"
