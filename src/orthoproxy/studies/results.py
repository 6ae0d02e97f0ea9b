"""The file that stays of a cell: its scores, costs and configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orthoproxy.core.errors import InputError
from orthoproxy.core.files import atomic_write
from orthoproxy.core.safe_parsing import parse_json
from orthoproxy.studies.plan import METRICS, Cell, Options

FORMAT_VERSION = 1
OF_A_POINT = ("epoch", "seconds", "images", *METRICS)
OF_PROXIES = ("classes", "dim", "effective_rank", "squares", "floor")
ABSENT = object()  # null is a value


def write_result(result: Options, path: Path) -> None:
    """Write a result with a line a key, which is small and can be compared by eye.

    Parameters
    ----------
    result
        With the keys of `CHECKS`, ``format_version``, ``date`` and ``environment``.
    path
        Its folder is made if missing.

    Examples
    --------
    See `read_result`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f'  "{name}": {json.dumps(value, ensure_ascii=False)}' for name, value in result.items())
    atomic_write(path, f"{{\n{lines}\n}}\n")


def read_result(path: Path, cell: Cell, options: Options) -> Options:
    """Read a cell's result.

    Parameters
    ----------
    path
        Of the file, which is there.
    cell
        Whose result it has to be.
    options
        What the cell's configuration has now that is not the default.

    Returns
    -------
    dict
        As it was written.

    Raises
    ------
    InputError
        If the file is damaged, of an unknown version, of another cell, or of another configuration.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "on_seed0.json"
    >>> write_result({"format_version": 1, "cell": "off_seed0"}, path)
    >>> read_result(path, Cell("on", {}, 0), {})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: ...on_seed0.json: damaged, method is missing; remove it, and its cell is trained again
    """
    again = "remove it, and its cell is trained again"
    try:
        result = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: damaged; {again}") from error
    version = result.get("format_version") if isinstance(result, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(f"{path}: format_version {version!r} is unknown; this orthoproxy reads {FORMAT_VERSION}")
    for key, is_right in CHECKS.items():
        if key not in result:
            raise InputError(f"{path}: damaged, {key} is missing; {again}")
        may_be_none = key in ("test", "geometry") or (key in ("validation", "seconds", "images") and "failed" in result)
        if not ((result[key] is None and may_be_none) or is_right(result[key])):
            raise InputError(f"{path}: damaged, {key} is not what a cell leaves; {again}")
    if result["cell"] != cell.name:
        raise InputError(f"{path}: is of the cell {result['cell']}; give the file that name, or remove it")
    _check_options(path, result["options"], json.loads(json.dumps(options)))
    return result


def _check_options(path: Path, before: Options, now: Options) -> None:
    for name in {**before, **now}:
        had, has = before.get(name, ABSENT), now.get(name, ABSENT)
        if had != has:
            values = ["the default" if value is ABSENT else repr(value) for value in (had, has)]
            raise InputError(
                f"{path}: is of a run with {name} {values[0]}, and the study has {values[1]}; "
                "remove the file and its run folder to train it again, or give the study another name"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _has_numbers(value: Any, keys: tuple[str, ...]) -> bool:
    return isinstance(value, dict) and all(_is_number(value.get(key)) for key in keys)


def _is_curve(value: Any) -> bool:
    return isinstance(value, list) and all(_has_numbers(point, OF_A_POINT) for point in value)


def _is_geometry(value: Any) -> bool:
    return _has_numbers(value, OF_PROXIES) and (
        value.get("largest_cosine") is None or _is_number(value["largest_cosine"])
    )


def _are_scores(value: Any) -> bool:
    """Tell whether these are scores of classes: as many names as queries and as values of each model and metric."""
    if not isinstance(value, dict) or not all(isinstance(value.get(model), dict) for model in ("trained", "untrained")):
        return False
    scores = [value[model].get(metric) for model in ("trained", "untrained") for metric in METRICS]
    columns = [value.get("classes"), value.get("queries"), *scores]
    if not all(isinstance(column, list) and column for column in columns) or len({*map(len, columns)}) > 1:
        return False
    numbers = [number for column in columns[1:] for number in column]
    return all(map(_is_text, columns[0])) and all(map(_is_number, numbers)) and min(columns[1]) > 0


CHECKS: dict[str, Callable[[Any], bool]] = {
    "cell": _is_text,
    "method": _is_text,
    "setting": lambda value: isinstance(value, dict),
    "seed": _is_number,
    "options": lambda value: isinstance(value, dict),
    "validation": _are_scores,
    "test": _are_scores,
    "curve": _is_curve,
    "geometry": _is_geometry,
    "seconds": _is_number,
    "images": _is_number,
    "elapsed": _is_number,
}
