"""Studies are read from their files, with what is wrong in one told by its key."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from orthoproxy.core.errors import InputError
from orthoproxy.core.files import is_file
from orthoproxy.core.safe_parsing import parse_yaml
from orthoproxy.studies.plan import METRICS, SEED, Cell, Method, Options, Study

REQUIRED = {"title", "base", "seeds", "metric", "baseline", "methods"}
OPTIONAL = {"question", "set", "tuning_seeds", "compare", "expected_seconds"}
NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


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
    orthoproxy.core.errors.InputError: no study nowhere.yaml
    """
    path = Path(path)
    try:
        given = parse_yaml(path.read_text(encoding="utf-8"))
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
