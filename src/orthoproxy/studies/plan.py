"""What a study is: methods, their settings and seeds, written down before the first run."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from orthoproxy.errors import InputError
from orthoproxy.files import is_file
from orthoproxy.plain import plain_yaml

Options = dict[str, Any]  # dotted names of fields and their values
Result = Mapping[str, Any]  # of a result file, see `orthoproxy.study_cells.read_result`

REQUIRED = {"title", "base", "seeds", "metric", "baseline", "methods"}
OPTIONAL = {"question", "set", "tuning_seeds", "compare", "expected_seconds"}
SEED = "training.seed"
TIE = 1e-6  # scores of classes are kept with six digits: what differs by less may be as many hits
METRICS = ("recall@1", "map@r")
NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


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
    orthoproxy.errors.InputError: a and b were scored on different test classes or queries; ...
    """
    for result in results[1:]:
        if any(result[part][what] != results[0][part][what] for what in ("classes", "queries")):
            cells = f"{results[0]['cell']} and {result['cell']}"
            raise InputError(
                f"{cells} were scored on different {part} classes or queries; run all cells of a study on the same data"
            )


def read_study(path: str | Path) -> Study:
    """Read a study from its file.

    Parameters
    ----------
    path
        YAML; see docs/guide/studies.md.

    Returns
    -------
    Study
        Checked, but for the options, which the recipe's fields decide on.

    Raises
    ------
    InputError
        If the file is missing, is no YAML, or has a key or a value that cannot be.

    Examples
    --------
    >>> read_study("nowhere.yaml")
    Traceback (most recent call last):
    ...
    orthoproxy.errors.InputError: no study nowhere.yaml
    """
    path = Path(path)
    try:
        given = plain_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"no study {path}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    try:
        return _study(given, path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _study(given: Any, path: Path) -> Study:
    given = _mapping(given, "the study", REQUIRED | OPTIONAL, REQUIRED)
    listed = _mapping(given["methods"], "methods")
    methods = {name: _method(name, value, path.parent, [*listed]) for name, value in listed.items()}
    if not methods:
        raise InputError("methods: none; give at least one")
    seeds, tuning = _seeds(given["seeds"], "seeds"), _seeds(given.get("tuning_seeds", []), "tuning_seeds")
    _check_names(given, methods)
    if not tuning and any(method.choose for method in methods.values()):
        raise InputError("tuning_seeds: missing; a setting is chosen by runs with these seeds, for example [0, 1]")
    for key in ("title", "base"):
        if not isinstance(given[key], str) or not given[key].strip():
            raise InputError(f"{key}: {given[key]!r}; give {'a recipe' if key == 'base' else 'a heading'}")
    study = Study(
        name=path.stem,
        path=path,
        title=given["title"],
        question=str(given.get("question") or ""),
        base=path.parent / given["base"],
        set=_mapping(given.get("set", {}), "set"),
        seeds=seeds,
        tuning_seeds=tuning,
        metric=given["metric"],
        baseline=given["baseline"],
        compare=given.get("compare", []),
        methods=methods,
        expected_seconds=_expected(given.get("expected_seconds")),
    )
    _check_cells(study)
    return study


def _check_cells(study: Study) -> None:
    """See that each cell has a name of its own, and its seed from nowhere else."""
    given = {"set": study.set}
    for name, method in study.methods.items():
        given |= {f"methods.{name}.set": method.set, f"methods.{name}.choose": method.choose}
    for where, options in given.items():
        if SEED in options:
            raise InputError(f"{where}.{SEED}: a cell has its seed from seeds and tuning_seeds; leave it out")
    owners: dict[str, str] = {}
    for name, method in study.methods.items():
        for setting in method.settings:
            for seed in dict.fromkeys([*study.tuning_seeds, *study.seeds]):
                cell = Cell(name, setting, seed).name
                if (owner := owners.setdefault(cell, name)) != name:
                    raise InputError(f"methods: {owner} and {name} both have a cell {cell}; give one another name")
        names = [Cell(name, setting, 0).name for setting in method.settings]
        if len({*names}) < len(names):
            raise InputError(f"methods.{name}.choose: a value comes twice; give every value once")


def _expected(seconds: Any) -> float | None:
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if seconds is not None and not (number and math.isfinite(seconds) and seconds > 0):
        raise InputError(f"expected_seconds: {seconds!r}; give the seconds that a cell takes, or leave it out")
    return seconds


def _check_names(given: Options, methods: Mapping[str, Method]) -> None:
    if given["metric"] not in METRICS:
        raise InputError(f"metric: unknown {given['metric']!r}; one of {', '.join(METRICS)}")
    compare = given.get("compare", [])
    if not isinstance(compare, list):
        raise InputError(f"compare: {compare!r}; give a list of methods")
    for key, name in [("baseline", given["baseline"]), *(("compare", name) for name in compare)]:
        if not isinstance(name, str) or name not in methods:
            raise InputError(f"{key}: there is no method {name!r}; there are {', '.join(methods)}")
    if methods[given["baseline"]].against is not None:
        raise InputError(f"methods.{given['baseline']}.against: it is the baseline, which is compared with nothing")
    if given["baseline"] in compare:
        raise InputError(f"compare: {given['baseline']!r} is the baseline itself; leave it out")
    if len(set(compare)) < len(compare):
        raise InputError("compare: a method comes twice; name it once")


def _method(name: Any, given: Any, folder: Path, names: Sequence[str]) -> Method:
    if not isinstance(name, str) or not NAME.fullmatch(name) or len(name) > 60:
        raise InputError(f"methods: the name {name!r} cannot be one of a file; use letters, digits, - and .")
    given = _mapping(given, f"methods.{name}", {"set", "choose", "recipe", "against"})
    choose = _mapping(given.get("choose", {}), f"methods.{name}.choose")
    for option, values in choose.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"methods.{name}.choose.{option}: {values!r}; give a list of values to choose from")
    recipe = given.get("recipe")
    if recipe is not None and not is_file(folder / str(recipe)):
        raise InputError(f"methods.{name}.recipe: no file {folder / str(recipe)}; give it from the study's folder")
    others, against = [other for other in names if other != name], given.get("against")
    if against not in (None, *others):
        raise InputError(f"methods.{name}.against: {against!r}; give another method: {', '.join(others)}")
    options = _mapping(given.get("set", {}), f"methods.{name}.set")
    return Method(options, choose, None if recipe is None else folder / str(recipe), against)


def _mapping(value: Any, what: str, known: set[str] | None = None, required: set[str] | None = None) -> Options:
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise InputError(f"{what}: {value!r}; give keys and values")
    unknown = [key for key in value if known is not None and key not in known]
    if unknown:
        raise InputError(f"{what}: unknown key {unknown[0]!r}; there are {', '.join(sorted(known or ()))}")
    if missing := sorted((required or set()) - set(value)):
        raise InputError(f"{missing[0]}: missing")
    return {str(key): _number(item) for key, item in value.items()}


def _number(value: Any) -> Any:
    """Take 1e-3 for a number, which YAML asks to be written 1.0e-3."""
    if isinstance(value, list):
        return [_number(item) for item in value]
    written = isinstance(value, str) and re.fullmatch(r"[+-]?\d+\.?\d*[eE][+-]?\d+", value)
    return float(value) if written else value


def _seeds(value: Any, key: str) -> list[int]:
    """Take a list of seeds, or a number of them: 8 is 0 to 7."""
    listed = value if isinstance(value, list) else [value]
    numbers = [x for x in listed if isinstance(x, int) and not isinstance(x, bool) and x >= 0]
    seeds = numbers if isinstance(value, list) else [seed for count in numbers for seed in range(count)]
    if len(numbers) < len(listed) or len(set(seeds)) < len(seeds) or (key == "seeds" and not seeds):
        raise InputError(f"{key}: {value!r}; give a list of different whole numbers, or how many: 8 stands for 0 to 7")
    return seeds
