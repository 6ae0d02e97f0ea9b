"""Results of trials: a JSON file each while a study runs, one Parquet file per finished study."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int
from pyarrow import parquet
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, ValidationError, model_validator

from orthoproxy.core.errors import InputError
from orthoproxy.core.files import atomic_write
from orthoproxy.core.safe_parsing import parse_json

Metric = Literal["recall@1", "map@r"]
METRICS: tuple[Metric, ...] = ("recall@1", "map@r")
JSON_COLUMNS = ("setting", "options", "environment", "retrained")  # free-form dictionaries
Split = Literal["validation", "test"]
Scores = dict[Metric, list[FiniteFloat]]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SplitScores(_Record):
    """Scores of the classes of a split, by the trained model and by the untrained encoder."""

    classes: list[str] = Field(min_length=1)
    queries: list[PositiveInt]
    trained: Scores
    untrained: Scores

    @model_validator(mode="after")
    def _check_lengths(self) -> SplitScores:
        columns = [scores.get(metric, []) for scores in (self.trained, self.untrained) for metric in METRICS]
        if any(len(column) != len(self.classes) for column in (self.queries, *columns)):
            raise InputError("not one value per class")
        return self


class TrialResult(_Record):
    """Scores, cost, configuration and environment of a trial."""

    format_version: Literal[2] = 2
    study: str
    trial: str
    method: str
    setting: dict[str, Any]
    seed: int
    options: dict[str, Any]  # configuration by dotted keys, without what depends on the machine
    validation: SplitScores | None = None
    test: SplitScores | None = None  # of final trials
    curve: list[dict[str, FiniteFloat]] = []  # epoch, seconds, images and validation scores after each epoch
    geometry: dict[str, FiniteFloat | None] | None = None  # of the proxies, see reports.geometry; None without
    seconds: FiniteFloat | None = None  # of the training
    images: int | None = None
    elapsed: FiniteFloat  # of the trial without the test classes
    date: str
    environment: dict[str, str]
    retrained: dict[str, Any] | None = None  # date and environment of a second training, to evaluate on test classes
    failed: str | None = None  # why the training diverged

    @model_validator(mode="after")
    def _check_complete(self) -> TrialResult:
        if self.failed is None and None in (self.validation, self.seconds, self.images):
            raise InputError("validation, seconds or images is missing")
        return self

    def score(self, split: Split, metric: str, model: Literal["trained", "untrained"] = "trained") -> float:
        """Return the mean over all queries of a split."""
        scores = self.split(split)
        return float(np.average(getattr(scores, model)[metric], weights=scores.queries))

    def split(self, split: Split) -> SplitScores:
        """Return the scores of a split, which the trial must have."""
        scores = getattr(self, split)
        if scores is None:
            raise ValueError(f"{self.trial} has no {split} scores")
        return scores


def check_same_split(results: Sequence[TrialResult], split: Split) -> None:
    """Raise InputError if results were scored on different classes or queries."""
    for result in results[1:]:
        first, other = results[0].split(split), result.split(split)
        if (first.classes, first.queries) != (other.classes, other.queries):
            problem = f"{results[0].trial} and {result.trial} were scored on different {split} classes or queries"
            raise InputError(problem, hint="run all trials of a study on the same data")


def score_matrix(
    results: Sequence[TrialResult], metric: str, model: Literal["trained", "untrained"] = "trained"
) -> tuple[Float[np.ndarray, "S C"], Int[np.ndarray, " C"]]:
    """Return the mean test score of each class, with one row per result, and the number of queries of each class."""
    check_same_split(results, "test")
    splits = [result.split("test") for result in results]
    return np.array([getattr(split, model)[metric] for split in splits]), np.array(splits[0].queries)


def write_trial(result: TrialResult, path: Path) -> None:
    """Write a result as JSON, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, result.model_dump_json(indent=1) + "\n")


def read_trial(path: Path) -> TrialResult:
    """Read a result that `write_trial` has written; raise InputError if it is damaged or misnamed."""
    try:
        result = _validate(parse_json(path.read_text(encoding="utf-8")), path)
    except ValueError as error:
        damage = error if isinstance(error, InputError) else InputError("not JSON", path=path)
        raise replace(damage, hint="delete it to run the trial again") from error
    if result.trial != path.stem:
        raise InputError(f"holds {result.trial}", path=path, hint=f"rename it to {result.trial}.json")
    return result


def write_results(results: Iterable[TrialResult], path: Path) -> None:
    """Write the results of a study as Parquet, atomically, sorted by name."""
    rows = [result.model_dump(mode="json") for result in sorted(results, key=lambda r: r.trial)]
    for row in rows:
        for column in JSON_COLUMNS:
            row[column] = None if row[column] is None else json.dumps(row[column], ensure_ascii=False)
    table = pa.Table.from_pylist(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda file: parquet.write_table(table, file, compression="zstd", compression_level=19))


def read_results(path: str | Path) -> list[TrialResult]:
    """Read the results of a study from its Parquet file; raises `InputError` if it is missing or damaged.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "empty.parquet"
    >>> write_results([], path)
    >>> read_results(path)
    []
    """
    path = Path(path)
    try:
        rows = parquet.read_table(path).to_pylist()
        for row in rows:
            for column in JSON_COLUMNS:
                value = row.get(column)
                row[column] = parse_json(value) if isinstance(value, str) else value
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", path=path) from error
    return [_validate(row, path) for row in rows]


def _validate(content: Any, path: Path) -> TrialResult:
    try:
        return TrialResult.model_validate(content)
    except ValidationError as error:
        raise to_input_error(error, path) from error


def to_input_error(error: ValidationError, path: Path) -> InputError:
    """Convert the first problem that pydantic found."""
    first = error.errors()[0]
    cause, location = first.get("ctx", {}).get("error"), list(map(str, first["loc"]))
    if isinstance(cause, InputError):
        return replace(cause, field=".".join([*location, *([cause.field] if cause.field else [])]) or None, path=path)
    return InputError(first["msg"], field=".".join(location) or None, path=path)
