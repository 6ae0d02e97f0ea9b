"""What a study is: methods, their settings and seeds, written down before the first run."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from orthoproxy.core.errors import InputError

Options = dict[str, Any]  # dotted names of fields and their values
Result = Mapping[str, Any]  # of a result file, see `orthoproxy.runs.study_trials.read_result`

SEED = "training.seed"
TIE = 1e-6  # scores of classes are kept with six digits: what differs by less may be as many hits
METRICS = ("recall@1", "map@r")


@dataclass(frozen=True)
class Method:
    """What is compared: options over the base recipe, and those of which one value is chosen.

    Parameters
    ----------
    set
        Options of every setting.
    choose
        For each option the values to choose from; every combination is a setting.
    recipe
        A part of a recipe that is laid over the base before any options, for example one of recipes/losses/; or None.
    against
        The method that this one is compared with; None for the baseline of the study.

    Examples
    --------
    >>> Method(choose={"loss.orthogonality.weight": [0.1, 1], "training.epochs": [8]}).settings
    [{'loss.orthogonality.weight': 0.1, 'training.epochs': 8}, {'loss.orthogonality.weight': 1, 'training.epochs': 8}]
    """

    set: Options = field(default_factory=dict)
    choose: dict[str, list[Any]] = field(default_factory=dict)
    recipe: Path | None = None
    against: str | None = None

    @property
    def settings(self) -> list[Options]:
        """The settings in the order of the grid; one that is empty where there is nothing to choose."""
        return [dict(zip(self.choose, values, strict=True)) for values in itertools.product(*self.choose.values())]


@dataclass(frozen=True)
class Cell:
    """One run of a study: a setting of a method and a seed.

    Examples
    --------
    >>> Cell("so", {"loss.orthogonality.weight": 0.3}, seed=1).name
    'so_weight-0.3_seed1'
    """

    method: str
    setting: Options
    seed: int

    @property
    def name(self) -> str:
        """Names its run folder and its result file; a hash where words would be long or unclear."""
        words = "_".join(f"{key.rpartition('.')[2]}-{value}" for key, value in sorted(self.setting.items()))
        if not re.fullmatch(r"[\w.+-]{0,60}", words):
            text = json.dumps(self.setting, sort_keys=True)
            words = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        return "_".join(part for part in (self.method, words, f"seed{self.seed}") if part)


@dataclass(frozen=True)
class Study:
    """A question, and the runs that are to answer it.

    Each setting of a method is trained with each tuning seed; the one best on validation classes is then trained with
    all seeds, and these runs alone are judged on the test classes.

    Parameters
    ----------
    name
        Of the file, without its ending.
    path
        The file.
    title, question
        For people.
    base
        The recipe that all cells start from.
    set
        Options of all cells.
    seeds
        Of the runs that are judged.
    tuning_seeds
        Of the runs that choose a setting.
    metric
        The score that the choice and the comparisons look at.
    baseline
        The method that others are compared with, if they name no other.
    compare
        Methods whose comparison, with the baseline or what they are `against`, was named before running.
    methods
        By name.
    expected_seconds
        Guess of what a cell takes, for the plan; None: unknown until one is done.

    Examples
    --------
    >>> study = Study("so", methods={"off": Method(), "on": Method(choose={"loss.orthogonality.weight": [0.1, 1]})},
    ...               baseline="off", compare=["on"], seeds=[0, 1, 2], tuning_seeds=[0])
    >>> [cell.name for cell in study.first_cells]  # what is known to run from the beginning
    ['off_seed0', 'off_seed1', 'off_seed2', 'on_weight-0.1_seed0', 'on_weight-1_seed0']
    >>> [cell.seed for cell in study.later_cells("on", {"loss.orthogonality.weight": 1})]
    [1, 2]
    """

    name: str
    methods: dict[str, Method]
    baseline: str
    compare: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])
    tuning_seeds: list[int] = field(default_factory=list)
    metric: str = "recall@1"
    set: Options = field(default_factory=dict)
    base: Path = Path()
    path: Path = Path()
    title: str = ""
    question: str = ""
    expected_seconds: float | None = None

    @property
    def first_cells(self) -> list[Cell]:
        """All settings with the tuning seeds, and with all seeds what has one setting only."""
        return [
            Cell(name, setting, seed)
            for name, method in self.methods.items()
            for setting in method.settings
            for seed in (self.tuning_seeds if method.choose else self.seeds)
        ]

    def later_cells(self, method: str, setting: Options) -> list[Cell]:
        """List what a chosen setting has still to be trained with."""
        done = self.tuning_seeds if self.methods[method].choose else self.seeds
        return [Cell(method, setting, seed) for seed in self.seeds if seed not in done]

    def judged_cells(self, method: str, setting: Options) -> list[Cell]:
        """List what of a chosen setting is judged on the test classes."""
        return [Cell(method, setting, seed) for seed in self.seeds]

    def options(self, cell: Cell) -> Options:
        """Put together the options that a cell is given after the recipes; later ones override earlier ones."""
        return {**self.set, **self.methods[cell.method].set, **cell.setting, SEED: cell.seed}


def score_of(result: Result, part: str, metric: str, who: str = "trained") -> float:
    """Take the score out of a result: the mean over its classes, each counted by its queries.

    Parameters
    ----------
    result
        Of a result file.
    part
        ``validation`` or ``test``.
    metric
        ``recall@1`` or ``map@r``.
    who
        ``trained`` or ``untrained``.

    Examples
    --------
    >>> scores = {"classes": ["a", "b"], "queries": [3, 1], "trained": {"recall@1": [1.0, 0.0]}}
    >>> score_of({"validation": scores}, "validation", "recall@1")
    0.75
    """
    return float(np.average(result[part][who][metric], weights=result[part]["queries"]))


def chosen_setting(study: Study, results: Sequence[Result], method: str) -> Options | None:
    """Find the setting of a method with the best mean score on validation classes over the tuning seeds.

    Parameters
    ----------
    study
        Names settings, tuning seeds and the metric.
    results
        Of result files, of any cells.
    method
        Its name.

    Returns
    -------
    dict or None
        The setting; of equally good ones the first of the grid. None: some of its tuning cells have no result yet, or
        none could be trained. A setting that failed with a tuning seed is out.

    Raises
    ------
    InputError
        If its cells were scored on different validation classes.

    Examples
    --------
    >>> study = Study("so", {"on": Method(choose={"loss.orthogonality.weight": [0.1, 1]})}, "on", tuning_seeds=[0])
    >>> def result(weight, score):
    ...     scores = {"classes": ["a"], "queries": [9], "trained": {"recall@1": [score]}}
    ...     setting = {"loss.orthogonality.weight": weight}
    ...     return {"cell": Cell("on", setting, 0).name, "validation": scores}
    >>> chosen_setting(study, [result(0.1, 0.4), result(1, 0.5)], "on")
    {'loss.orthogonality.weight': 1}
    >>> chosen_setting(study, [result(1, 0.5)], "on") is None
    True
    """
    settings = study.methods[method].settings
    if len(settings) == 1 and not study.methods[method].choose:
        return settings[0]
    tuned = [tuning_results(study, results, method, setting) for setting in settings]
    if any(result is None for by_seed in tuned for result in by_seed.values()):
        return None
    trained = [[result for result in by_seed.values() if result and not result.get("failed")] for by_seed in tuned]
    check_alike([result for of_setting in trained for result in of_setting], "validation")
    best: tuple[float, Options] | None = None
    for setting, of_setting in zip(settings, trained, strict=True):
        if len(of_setting) == len(study.tuning_seeds):
            score = float(np.mean(validation_scores(of_setting, study.metric)))
            if best is None or score > best[0] + TIE:
                best = (score, setting)
    return best and best[1]


def tuning_results(study: Study, results: Sequence[Result], method: str, setting: Options) -> dict[int, Result | None]:
    """Pick the results by which a setting is chosen, or would be.

    Parameters
    ----------
    study, results, method
        As in `chosen_setting`.
    setting
        One of the method's.

    Returns
    -------
    dict
        Seed to result; None where there is none yet. A method with nothing to choose has the same seeds as the others,
        as far as they are among its own.

    Examples
    --------
    >>> tuning_results(Study("so", {"off": Method()}, "off", seeds=[0, 1, 2], tuning_seeds=[0, 1]), [], "off", {})
    {0: None, 1: None}
    """
    seeds = study.tuning_seeds
    if not study.methods[method].choose:
        seeds = [seed for seed in study.seeds if seed in study.tuning_seeds] or study.seeds
    known = {result["cell"]: result for result in results}
    return {seed: known.get(Cell(method, setting, seed).name) for seed in seeds}


def validation_scores(results: Iterable[Result | None], metric: str) -> list[float]:
    """Score on the validation classes what was trained; what is missing or failed is left out.

    Parameters
    ----------
    results
        From `tuning_results`, say.
    metric
        ``recall@1`` or ``map@r``.

    Examples
    --------
    >>> scores = {"classes": ["a"], "queries": [9], "trained": {"recall@1": [0.5]}}
    >>> validation_scores([None, {"validation": scores}, {"failed": "the loss is nan"}], "recall@1")
    [0.5]
    """
    return [score_of(result, "validation", metric) for result in results if result and not result.get("failed")]


def check_alike(results: Sequence[Result], part: str) -> None:
    """See that results were scored on the same classes, with as many queries.

    Parameters
    ----------
    results
        With scores of that part.
    part
        ``validation`` or ``test``.

    Raises
    ------
    InputError
        If two were not.

    Examples
    --------
    >>> scored = [{"cell": x, "test": {"classes": [x], "queries": [9]}} for x in ("a", "b")]
    >>> check_alike(scored, "test")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: a and b were scored on different test classes or queries; ...
    """
    for result in results[1:]:
        if any(result[part][what] != results[0][part][what] for what in ("classes", "queries")):
            cells = f"{results[0]['cell']} and {result['cell']}"
            raise InputError(
                f"{cells} were scored on different {part} classes or queries; run all cells of a study on the same data"
            )
