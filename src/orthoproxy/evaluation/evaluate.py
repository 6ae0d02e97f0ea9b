"""Evaluate a model on a table of images, beside the untrained encoder, with confidence intervals."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from dataclasses import field as dataclass_field
from functools import partial
from typing import Any, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from pydantic import TypeAdapter

from orthoproxy.core.distributed import gather_objects, local_slice, raise_together, split_sizes
from orthoproxy.core.errors import InputError
from orthoproxy.data.audit.duplicates import find_copies
from orthoproxy.data.table import class_numbers
from orthoproxy.embedding.augmentation import augmented as augmented_model
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.evaluation.bootstrap import Estimate, bootstrap_means, estimate
from orthoproxy.evaluation.metrics import query_metrics
from orthoproxy.evaluation.query_expansion import expand_queries
from orthoproxy.evaluation.reranking import list_length, rerank
from orthoproxy.evaluation.retrieval import Exclude, Retrieval
from orthoproxy.evaluation.voting import VoteScores

Embeddings = Float[np.ndarray, "N D"]
Lever = Callable[[Retrieval], Retrieval]  # changes what queries find


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model and of a baseline on the same queries.

    Parameters
    ----------
    model, baseline, difference
        Metric name to `Estimate`, as fractions; the difference is model minus baseline, with the interval of the
        paired difference. Both are None without a baseline.
    queries, classes, queries_without_positive
        Number of scored queries, of their classes, and of queries left out, whose gallery has no image of their class.
    seconds, confidence
        Duration, embedding included, and coverage of the intervals.
    exclude
        What of a query's group was left out of its gallery, as in `Scoring`; ``none`` without groups.
    exclude_none
        Unless that is ``none``, the scores under that rule.
    duplicate_pairs
        Number of pairs of a query and a near copy in its gallery that were left out; None if they were kept.
    by_category
        If the table has categories, the scores of the queries of each, without duration; a category without a scored
        query is left out.
    known_classes
        Whether the queries are new images of training classes, and the gallery is the training images.
    unseen
        If so, the scores of the classes among the test images that are no training classes, if there are any.
    vote
        If so, details of the vote, whose `accuracy`, `coverage` and `precision` are among the metrics.
    search_time
        If asked for, the model's scores with augmentation, query expansion and re-ranking, each by itself; their
        `baseline` is the model without.

    Examples
    --------
    >>> half = {"recall@1": Estimate(0.5, 0.4, 0.6)}
    >>> scores = Evaluation(half, None, None, queries=8, classes=4, queries_without_positive=0, seconds=1.0)
    >>> scores.to_dict()["model"]
    {'recall@1': {'value': 0.5, 'low': 0.4, 'high': 0.6}}
    >>> Evaluation.from_dict(scores.to_dict()) == scores
    True
    """

    model: dict[str, Estimate]
    baseline: dict[str, Estimate] | None
    difference: dict[str, Estimate] | None
    queries: int
    classes: int
    queries_without_positive: int
    seconds: float = 0.0
    confidence: float = 0.95
    exclude: Exclude = "none"
    exclude_none: Evaluation | None = None
    duplicate_pairs: int | None = None
    by_category: dict[str, Evaluation] | None = None
    known_classes: bool = False
    unseen: Evaluation | None = None
    vote: VoteScores | None = None
    search_time: dict[str, Evaluation] | None = None

    @property
    def kind(self) -> str:
        """Whether ``known classes`` or ``unseen classes`` were evaluated."""
        return "known classes" if self.known_classes else "unseen classes"

    def to_dict(self) -> dict[str, Any]:
        """Return the evaluation as `evaluate --json` writes it."""
        optional = ("exclude_none", "by_category", "unseen", "vote", "search_time")
        return asdict(self, dict_factory=lambda items: {name: x for name, x in items if name not in optional or x})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evaluation:
        """Invert `to_dict`; other keys are ignored."""
        return TypeAdapter(cls).validate_python(values)


@dataclass(frozen=True)
class Scoring:
    """Metrics and settings of an evaluation.

    Parameters
    ----------
    recall_at
        Values of K for Recall@K.
    map
        Also report mAP (``map``) and mINP (``minp``), for which all positives are ranked; takes longer.
    exclude
        What leaves a query's gallery: ``group``, its own group; ``own_class_in_group``, only the images of its class
        in its group, as in re-identification (same person, same camera); or ``none``.
    exclude_duplicates
        Leave near copies of a query out of its gallery, as `find_copies` finds them; reads all images.
    expand
        Also score with queries expanded by this many neighbors, as `expand_queries` does; 0 for none.
    rerank
        Also score with re-ranking, as `rerank` does.
    bootstrap_samples, confidence
        Bootstrap samples of classes, and coverage of the intervals.
    block_memory_mb
        Bound in MiB on the memory of the similarities computed at a time, for each process.
    device
        Where similarities are computed: a CUDA device, or else the CPU.
    shared
        Divide the queries among the processes of a distributed job, all of which must then score.

    Examples
    --------
    >>> Scoring(recall_at=(1, 10, 100)).confidence
    0.95
    """

    recall_at: tuple[int, ...] = (1, 2, 4, 8)
    map: bool = False
    exclude: Exclude = "group"
    exclude_duplicates: bool = False
    expand: int = 0
    rerank: bool = False
    bootstrap_samples: int = 1000
    confidence: float = 0.95
    block_memory_mb: float = 512
    device: str = "cpu"
    shared: bool = False

    def __post_init__(self) -> None:
        """Raise InputError for a value out of range, before images are embedded."""
        ranks = min(self.recall_at, default=0) >= 1 and max(self.recall_at) < 2**31
        for name, valid, expected in (
            ("recall_at", ranks, "one or more integers from 1 to 2147483647"),
            ("exclude", self.exclude in get_args(Exclude), " or ".join(get_args(Exclude))),
            ("expand", self.expand >= 0, "0 or more"),
            ("bootstrap_samples", self.bootstrap_samples >= 1, "at least 1"),
            ("confidence", 0 < self.confidence < 1, "above 0 and below 1, such as 0.95"),
            ("block_memory_mb", 0 < self.block_memory_mb < math.inf, "above 0, and finite"),
        ):
            if not valid:
                raise InputError(str(getattr(self, name)), field=name, expected=expected)

    def rule(self, table: pd.DataFrame) -> Exclude:
        """Return what of a query's group leaves its gallery when this table is scored; ``none`` without groups."""
        return self.exclude if (table["group"] != "").any() else "none"


def evaluate(
    model: Embedder,
    table: pd.DataFrame,
    baseline: Embedder | None = None,
    scoring: Scoring | None = None,
    workers: int = 0,
    progress: bool = False,
    augment: bool = False,
    precision: str = "32-true",
) -> Evaluation:
    """Embed the images of a table with a model and a baseline, and score both.

    Parameters
    ----------
    model, baseline
        The model to evaluate, and what to compare it with; None: the untrained encoder kept beside the model, if any.
    table
        From `data.make_table` or a data source; `role` tells queries from gallery.
    scoring
        Metrics and settings.
    workers, progress
        Processes that read images, and whether to show a progress bar.
    augment
        Also score the embeddings of the `augmented` model.
    precision
        As for `Embedder.embed`.

    Returns
    -------
    Evaluation
        Scores as fractions with class-bootstrap intervals, and the paired difference.

    Raises
    ------
    InputError
        If no query has a positive, the gallery has one class only, or an image cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> from orthoproxy.data import make_table
    >>> from orthoproxy.models import Encoder
    >>> folder = tempfile.mkdtemp()
    >>> paths = [f"{folder}/{number}.png" for number in range(4)]
    >>> for path, color in zip(paths, ["red", "red", "blue", "blue"]):
    ...     Image.new("RGB", (32, 32), color).save(path)
    >>> model = Embedder(Encoder("deit_tiny_patch16_224", image_size=32))
    >>> evaluate(model, make_table(paths, ["a", "a", "b", "b"])).model["recall@1"].value
    1.0
    """
    start = time.monotonic()
    if baseline is None and model.baseline_folder is not None:
        baseline = Embedder.load(model.baseline_folder, model.device)
    scoring, paths = scoring or Scoring(), table["path"].tolist()
    if scoring.exclude_duplicates:
        table = table.assign(copies=find_copies(table, workers))
    require_scorable(table, scoring)
    if scoring.rerank:
        lists_of = build_retrieval(np.zeros((len(table), 1)), table, scoring.rule(table), scoring.exclude_duplicates)
        list_length(lists_of, block_memory_mb=scoring.block_memory_mb)
    models = {"model": model, "baseline": baseline, "augmented": augmented_model(model) if augment else None}
    options = {"workers": workers, "precision": precision}
    rows = {
        name: used and used.embed(paths, progress=f"embed, {name}" if progress else None, **options)
        for name, used in models.items()
    }
    return score(**rows, table=table, scoring=replace(scoring, device=str(model.device)), start=start)


def score(
    model: Float[np.ndarray, "N D"],
    baseline: Float[np.ndarray, "N F"] | None,
    table: pd.DataFrame,
    scoring: Scoring,
    start: float | None = None,
    augmented: Float[np.ndarray, "N D"] | None = None,
) -> Evaluation:
    """Score embeddings; see `evaluate`.

    Parameters
    ----------
    model, baseline, augmented
        Embeddings, one row per image of the table, whose dimensions may differ; None: not scored.
    table
        Labels, roles and groups of the rows.
    scoring
        Metrics and settings.
    start
        When the work began, by `time.monotonic`; None for now.

    Raises
    ------
    InputError
        If no query has a positive, the gallery has one class only, or the number of rows is wrong.

    Examples
    --------
    >>> from orthoproxy.data import make_table
    >>> table = make_table(["1", "2", "3", "4"], ["a", "a", "b", "b"])
    >>> points = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]])
    >>> print(score(points, None, table, Scoring(recall_at=(1,))).model["recall@1"])
    100.0 [100.0, 100.0]
    """
    start = time.monotonic() if start is None else start
    for name, rows in (("model", model), ("baseline", baseline), ("augmented", augmented)):
        if rows is not None and len(rows) != len(table):
            raise InputError(f"{len(rows)} embeddings", field=name, expected=f"one per image, {len(table)}")
    if scoring.exclude_duplicates:
        table = table.assign(copies=find_copies(table))
    compare = partial(_compare, confidence=scoring.confidence, exclude=scoring.rule(table))
    own, other = _resample(model, table, scoring), None if baseline is None else _resample(baseline, table, scoring)
    by_category = {name: compare(part, other and other.by_category[name]) for name, part in own.by_category.items()}
    levers = _levers(model, augmented, scoring)
    search_time = {name: compare(_resample(x, table, scoring, lever), own) for name, x, lever in levers}
    result, plain = compare(own, other), replace(scoring, exclude="none", expand=0, rerank=False)
    return replace(
        result,
        exclude_none=None if result.exclude == "none" else score(model, baseline, table, plain),
        duplicate_pairs=_duplicate_pairs(table) if scoring.exclude_duplicates else None,
        by_category=by_category or None,
        search_time=search_time or None,
        seconds=time.monotonic() - start,
    )


def _levers(
    model: Embeddings, augmented: Embeddings | None, scoring: Scoring
) -> Iterator[tuple[str, Embeddings, Lever | None]]:
    blocks: dict[str, Any] = {"block_memory_mb": scoring.block_memory_mb, "device": scoring.device}
    if augmented is not None:
        yield "augment", augmented, None
    if scoring.expand:
        yield f"expand {scoring.expand}", model, partial(expand_queries, neighbors=scoring.expand, **blocks)
    if scoring.rerank:
        yield "rerank", model, partial(rerank, **blocks)


def mean_scores(embeddings: Embeddings, table: pd.DataFrame, scoring: Scoring) -> dict[str, float]:
    """Return the mean of each metric over the queries, without intervals."""
    means = _resample(embeddings, table, replace(scoring, bootstrap_samples=1))
    return dict(zip(means.metrics, means.values.tolist(), strict=True))


def require_scorable(table: pd.DataFrame, scoring: Scoring, what: str = "the table") -> None:
    """Raise InputError if no query has a positive in its gallery, or none a negative, from the table alone."""
    grouped = replace(scoring, exclude_duplicates=False)
    scorable = (_positives(table, scoring) > 0).any()  # then also with less excluded
    for step, wanted, field, hint in (
        (replace(grouped, exclude="none"), "another image of its class", "table", "give classes at least two images"),
        (grouped, "an image of its class in another group", "exclude", "set it to none, or give images other groups"),
        (scoring, "an image of its class that is no near copy of it", "exclude_duplicates", "set it to false"),
    ):
        if not (scorable or (_positives(table, step) > 0).any()):
            raise InputError(f"{what}: no query has {wanted} in the gallery", field=field, hint=hint)
    if table["label"][table["role"] != "query"].nunique() == 1:
        raise InputError(
            f"{what}: the gallery has one class only, so that any model would score 100",
            field="table",
            expected="at least two classes",
        )


def _positives(table: pd.DataFrame, scoring: Scoring) -> Int[np.ndarray, " Q"]:
    """Count the positives of each query: of its class, and neither of its group nor its copy."""
    row, number = np.arange(len(table)), pd.DataFrame({"label": table["label"]})
    # an image without a group or without copies is alone in its own
    grouped = (table["group"] != "") & (scoring.rule(table) != "none")
    number["group"] = np.where(grouped, pd.factorize(table["group"])[0], -1 - row)
    copies = find_copies(table) if scoring.exclude_duplicates else np.full(len(table), -1)
    number["copies"] = np.where(copies >= 0, copies, -1 - row)
    queries, gallery = number[table["role"] != "gallery"], number[table["role"] != "query"]

    def shared(*names: str) -> Int[np.ndarray, " Q"]:
        counts = gallery.value_counts(list(names))
        return counts.reindex(pd.MultiIndex.from_frame(queries[list(names)]), fill_value=0).to_numpy()

    excluded = shared("label", "group") + shared("label", "copies") - shared("label", "group", "copies")
    return shared("label") - excluded


def _duplicate_pairs(table: pd.DataFrame) -> int:
    """Count the pairs of a query and a near copy in its gallery."""
    copied = table[table["copies"] >= 0]
    queries, gallery = copied[copied["role"] != "gallery"], copied[copied["role"] != "query"]
    pairs = queries["copies"].map(gallery["copies"].value_counts()).fillna(0).sum()
    return int(pairs) - int((queries["role"] == "both").sum())  # without an image and itself


def build_retrieval(
    embeddings: Embeddings, table: pd.DataFrame, exclude: Exclude = "none", exclude_duplicates: bool = False
) -> Retrieval:
    """Combine embeddings with the labels, roles, groups and copies of a table."""
    return Retrieval(
        embeddings,
        labels=class_numbers(table)[0],
        queries=np.flatnonzero(table["role"] != "gallery"),
        gallery=np.flatnonzero(table["role"] != "query"),
        groups=None if exclude == "none" else np.where(table["group"] == "", -1, pd.factorize(table["group"])[0]),
        exclude=exclude,
        copies=find_copies(table) if exclude_duplicates else None,
        categories=pd.factorize(table["category"])[0] if (table["category"] != "").any() else None,
    )


@dataclass(frozen=True)
class _Resampled:
    """The M metrics' values on the data and on the bootstrap samples of its classes; the same for each category."""

    metrics: list[str]
    values: Float[np.ndarray, " M"]
    samples: Float[np.ndarray, "M W"]
    counts: tuple[int, int, int]  # queries, their classes, and queries without a positive
    by_category: dict[str, _Resampled] = dataclass_field(default_factory=dict)


def _compare(own: _Resampled, other: _Resampled | None, confidence: float, exclude: Exclude) -> Evaluation:
    """Evaluate a model beside another; the samples of both draw the same classes."""

    def intervals(values: np.ndarray, samples: np.ndarray) -> dict[str, Estimate]:
        found = zip(own.metrics, values, samples, strict=True)
        return {metric: estimate(value, drawn, confidence) for metric, value, drawn in found}

    baseline = other and intervals(other.values, other.samples)
    difference = other and intervals(own.values - other.values, own.samples - other.samples)
    model = intervals(own.values, own.samples)
    return Evaluation(model, baseline, difference, *own.counts, confidence=confidence, exclude=exclude)


def _resample(embeddings: Embeddings, table: pd.DataFrame, scoring: Scoring, lever: Lever | None = None) -> _Resampled:
    retrieval = build_retrieval(embeddings, table, scoring.rule(table), scoring.exclude_duplicates)
    metrics = score_queries(retrieval, table, scoring, lever)
    labels = retrieval.labels[retrieval.queries]
    whole = _resample_queries(metrics, labels, scoring.bootstrap_samples)
    category = table["category"].to_numpy()[retrieval.queries]
    for name in sorted(set(category[~np.isnan(metrics["mrr"])]) - {""}):
        own = category == name
        part = {metric: value[own] for metric, value in metrics.items()}
        whole.by_category[name] = _resample_queries(part, labels[own], scoring.bootstrap_samples)
    return whole


def _resample_queries(metrics: dict[str, np.ndarray], labels: Int[np.ndarray, " Q"], samples: int) -> _Resampled:
    """Average the metrics of queries, those without a positive left out."""
    scored = ~np.isnan(metrics["mrr"])
    classes = labels[scored]
    values = np.stack([value[scored] for value in metrics.values()])
    counts = len(classes), len(np.unique(classes)), int((~scored).sum())
    return _Resampled(list(metrics), values.mean(axis=1), bootstrap_means(values, classes, samples), counts)


def score_queries(
    retrieval: Retrieval, table: pd.DataFrame, scoring: Scoring, lever: Lever | None = None
) -> dict[str, Float[np.ndarray, " Q"]]:
    """Compute the metrics of every query; raises InputError as `require_scorable`."""
    require_scorable(table, scoring)

    def compute(part: Retrieval) -> dict[str, np.ndarray]:
        part = lever(part) if lever else part
        return query_metrics(part, scoring.recall_at, scoring.block_memory_mb, scoring.device, scoring.map)

    return for_all_queries(compute, retrieval, scoring.shared)


def for_all_queries(
    compute: Callable[[Retrieval], dict[str, np.ndarray]], retrieval: Retrieval, shared: bool
) -> dict[str, Float[np.ndarray, " Q"]]:
    """Compute values of every query, with the queries divided among processes if `shared`."""
    if not shared:
        return compute(retrieval)
    own = retrieval.queries[local_slice(split_sizes(len(retrieval.queries)))]
    with raise_together():
        values = compute(replace(retrieval, queries=own))
    parts = gather_objects(values)
    return {name: np.concatenate([part[name] for part in parts]) for name in values}
