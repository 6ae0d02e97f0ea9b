"""Judge a model on a table of images, beside the untrained encoder, with intervals."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from orthoproxy.core.distributed import gather_objects, local_slice, raise_together, split_sizes
from orthoproxy.core.errors import InputError
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.evaluation.bootstrap import Estimate, class_draws, estimate, resampled_means
from orthoproxy.evaluation.metrics import cluster, normalized_mutual_information, query_metrics
from orthoproxy.evaluation.neighbours import Retrieval

Embeddings = Float[np.ndarray, "N D"]


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model and of the untrained encoder on the same queries.

    `trained`, `untrained` and `difference` map a metric's name to its `Estimate`, as fractions; the latter two are None
    where there is no untrained encoder to compare with. `own_group_included` holds the plain scores where
    the queries' own groups were left out of the gallery.

    Examples
    --------
    >>> half = {"recall@1": Estimate(0.5, 0.4, 0.6)}
    >>> scores = Evaluation(half, None, None, queries=8, classes=4, without_positive=0, seconds=1.0, confidence=0.95)
    >>> scores.to_dict()["trained"]
    {'recall@1': {'value': 0.5, 'low': 0.4, 'high': 0.6}}
    >>> Evaluation.from_dict(scores.to_dict()) == scores
    True
    """

    trained: dict[str, Estimate]
    untrained: dict[str, Estimate] | None
    difference: dict[str, Estimate] | None
    queries: int
    classes: int
    without_positive: int
    seconds: float
    confidence: float = 0.95
    exclude_group: bool = False
    own_group_included: Evaluation | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the evaluation as `evaluate --json` writes it."""
        return {name: value for name, value in asdict(self).items() if name != "own_group_included" or value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evaluation:
        """Take back what `to_dict` returned; what else there is in it is left aside."""
        given: dict[str, Any] = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        for name in ("trained", "untrained", "difference"):
            scores = given[name]
            given[name] = scores and {metric: Estimate(**estimate) for metric, estimate in scores.items()}
        plain = given.get("own_group_included")
        return cls(**{**given, "own_group_included": plain and cls.from_dict(plain)})


@dataclass(frozen=True)
class Scoring:
    """How an evaluation scores; the same for every model it compares.

    Parameters
    ----------
    recall_at
        Values of K for Recall@K.
    nmi
        Also cluster by k-means and report NMI; takes long on large data.
    exclude_group
        Leave a query's own group out of its gallery. None: where the table has groups.
    draws
        Bootstrap samples of classes.
    confidence
        Coverage of the intervals.
    memory_mb
        Bound on the memory of a block of similarities, in MiB; of each process.
    device
        Where similarities are computed in float32: a CUDA device, or else the processor. No score depends on it.
    shared
        Divide the queries among the processes of a job, all of which must then score, and get the same scores.

    Examples
    --------
    >>> Scoring(recall_at=(1, 10, 100)).confidence
    0.95
    """

    recall_at: tuple[int, ...] = (1, 2, 4, 8)
    nmi: bool = False
    exclude_group: bool | None = None
    draws: int = 1000
    confidence: float = 0.95
    memory_mb: float = 512
    device: str = "cpu"
    shared: bool = False

    def excludes_group(self, table: pd.DataFrame) -> bool:
        """Whether a query's own group is left out when this table is scored."""
        return bool((table["group"] != "").any()) if self.exclude_group is None else self.exclude_group


def evaluate(
    model: Embedder,
    table: pd.DataFrame,
    untrained: Embedder | None = None,
    scoring: Scoring | None = None,
    workers: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Embed the images of a table with a model and with the untrained encoder, and score both.

    Parameters
    ----------
    model
        The model to judge.
    table
        From `data.make_table` or one of the sources; `role` says who is query and who gallery.
    untrained
        What to compare with; None for the untrained encoder that a run keeps beside its model, if there is one.
    scoring
        Metrics and settings.
    workers
        Processes that read images.
    progress
        Show it.

    Returns
    -------
    Evaluation
        Scores as fractions, with class-bootstrap intervals, and the paired difference.

    Raises
    ------
    InputError
        If no query has a positive, or an image cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> from orthoproxy.data import make_table
    >>> from orthoproxy.models import Encoder
    >>> folder = tempfile.mkdtemp()
    >>> paths = [f"{folder}/{number}.png" for number in range(4)]
    >>> for path, colour in zip(paths, ["red", "red", "blue", "blue"]):
    ...     Image.new("RGB", (32, 32), colour).save(path)
    >>> model = Embedder(Encoder("deit_tiny_patch16_224", image_size=32))
    >>> evaluate(model, make_table(paths, ["a", "a", "b", "b"])).trained["recall@1"].value
    1.0
    """
    start = time.monotonic()
    if untrained is None and model.baseline_folder is not None:
        untrained = Embedder.load(model.baseline_folder, model.device)
    paths = table["path"].tolist()
    trained = model.embed(paths, workers=workers, progress="embed, trained" if progress else None)
    baseline = untrained and untrained.embed(paths, workers=workers, progress="embed, untrained" if progress else None)
    return score(trained, baseline, table, replace(scoring or Scoring(), device=str(model.device)), start)


def score(
    trained: Float[np.ndarray, "N D"],
    untrained: Float[np.ndarray, "N F"] | None,
    table: pd.DataFrame,
    scoring: Scoring,
    start: float | None = None,
) -> Evaluation:
    """Score embeddings that are already there; see `evaluate`.

    Parameters
    ----------
    trained, untrained
        One row an image of the table; their widths may differ.
    table
        Labels, roles and groups of the rows.
    scoring
        Metrics and settings.
    start
        When the work began, by `time.monotonic`; None for now.

    Returns
    -------
    Evaluation
        As from `evaluate`.

    Examples
    --------
    >>> from orthoproxy.data import make_table
    >>> table = make_table(["1", "2", "3", "4"], ["a", "a", "b", "b"])
    >>> points = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]])
    >>> print(score(points, None, table, Scoring(recall_at=(1,))).trained["recall@1"])
    100.0 [100.0, 100.0]
    """
    start = time.monotonic() if start is None else start
    if any(x is not None and len(x) != len(table) for x in (trained, untrained)):
        raise ValueError(f"embeddings: one row an image is needed, and the table has {len(table)} images")
    ours = _sample(trained, table, scoring)
    theirs = ours if untrained is None else _sample(untrained, table, scoring)
    compared = untrained is not None
    return Evaluation(
        trained=ours.estimates(scoring.confidence),
        untrained=theirs.estimates(scoring.confidence) if compared else None,
        difference=ours.minus(theirs).estimates(scoring.confidence) if compared else None,
        queries=ours.queries,
        classes=ours.classes,
        without_positive=ours.without_positive,
        seconds=time.monotonic() - start,
        confidence=scoring.confidence,
        exclude_group=scoring.excludes_group(table),
        own_group_included=(
            score(trained, untrained, table, replace(scoring, exclude_group=False, nmi=False))
            if scoring.excludes_group(table)
            else None
        ),
    )


def mean_scores(embeddings: Embeddings, table: pd.DataFrame, scoring: Scoring) -> dict[str, float]:
    """Score embeddings without intervals, as validation during training needs it.

    Parameters
    ----------
    embeddings
        One row an image of the table.
    table, scoring
        As in `score`.

    Returns
    -------
    dict
        Metric name to mean over the queries, as a fraction.

    Examples
    --------
    >>> from orthoproxy.data import make_table
    >>> table = make_table(["1", "2", "3", "4"], ["a", "a", "b", "b"])
    >>> mean_scores(np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]]), table, Scoring(recall_at=(1,)))["map@r"]
    1.0
    """
    return _sample(embeddings, table, replace(scoring, draws=1)).values


def require_scorable(table: pd.DataFrame, scoring: Scoring, what: str) -> None:
    """Make sure, from labels, roles and groups alone, that some query has a positive in its gallery.

    Parameters
    ----------
    table
        From `data.make_table`.
    scoring
        Says whether a query's own group is left out.
    what
        Names the images in the error.

    Raises
    ------
    InputError
        With what is missing.

    Examples
    --------
    >>> from orthoproxy.data import make_table
    >>> require_scorable(make_table(["1", "2"], ["a", "b"]), Scoring(), "test")
    Traceback (most recent call last):
    ...
    orthoproxy.core.errors.InputError: test: no query has another image of its class in the gallery; give classes two images
    """
    in_gallery, is_query = table["role"] != "query", table["role"] != "gallery"
    gallery = table[in_gallery]
    positives = table["label"].map(gallery["label"].value_counts()).fillna(0) - in_gallery
    if (positives[is_query] > 0).any():
        if not scoring.excludes_group(table):
            return
        own = gallery[gallery["group"] != ""].value_counts(["label", "group"]).rename("own").reset_index()
        same_group = table.merge(own, on=["label", "group"], how="left")["own"].fillna(0).to_numpy()
        with_itself = np.where(table["group"] != "", in_gallery, False)
        if (positives - same_group + with_itself)[is_query].gt(0).any():
            return
        raise InputError(
            f"{what}: no query has an image of its class in another group; "
            "set evaluation.exclude_group to false, or give images other groups"
        )
    raise InputError(f"{what}: no query has another image of its class in the gallery; give classes two images")


def retrieval_of(embeddings: Embeddings, table: pd.DataFrame, exclude_group: bool) -> Retrieval:
    """Say who is searched for among whom, from the roles and groups of a table.

    Parameters
    ----------
    embeddings
        One row an image of the table.
    table
        From `data.make_table`.
    exclude_group
        Leave a query's own group out of its gallery.

    Returns
    -------
    Retrieval
        Classes and groups as numbers.

    Examples
    --------
    >>> from orthoproxy.data import make_table
    >>> table = make_table(["1", "2"], ["a", "a"], role=["query", "gallery"])
    >>> retrieval_of(np.eye(2), table, exclude_group=False).gallery
    array([1])
    """
    groups = np.where(table["group"] == "", -1, pd.factorize(table["group"])[0])
    return Retrieval(
        embeddings,
        labels=pd.factorize(table["label"], sort=True)[0],
        queries=np.flatnonzero(table["role"] != "gallery"),
        gallery=np.flatnonzero(table["role"] != "query"),
        groups=groups if exclude_group else None,
    )


@dataclass(frozen=True)
class _Sample:
    """Each metric's value on the data and on the bootstrap samples of its classes."""

    values: dict[str, float]
    resampled: dict[str, Float[np.ndarray, " W"]]
    queries: int
    classes: int
    without_positive: int

    def minus(self, other: _Sample) -> _Sample:
        """Pair sample with sample: both were drawn with the same seed from the same classes."""
        return replace(
            self,
            values={name: value - other.values[name] for name, value in self.values.items()},
            resampled={name: drawn - other.resampled[name] for name, drawn in self.resampled.items()},
        )

    def estimates(self, confidence: float) -> dict[str, Estimate]:
        return {name: estimate(value, self.resampled[name], confidence) for name, value in self.values.items()}


def _sample(embeddings: Embeddings, table: pd.DataFrame, scoring: Scoring) -> _Sample:
    retrieval = retrieval_of(embeddings, table, scoring.excludes_group(table))
    metrics = _shared_query_metrics(retrieval, scoring) if scoring.shared else _query_metrics(retrieval, scoring)
    scored = ~np.isnan(metrics["mrr"]) if metrics else np.zeros(0, dtype=bool)
    if not scored.any():
        require_scorable(table, scoring, "the data")
    names, classes = np.unique(retrieval.labels[retrieval.queries][scored], return_inverse=True)
    weights = class_draws(len(names), scoring.draws)
    values = {name: float(value[scored].mean()) for name, value in metrics.items()}
    resampled = {name: resampled_means(value[scored], classes, weights) for name, value in metrics.items()}
    if scoring.nmi:
        num_classes = int(retrieval.labels.max()) + 1
        clusters = cluster(embeddings, num_classes)
        values["nmi"] = float(normalized_mutual_information(retrieval.labels, clusters)[0])
        draws = class_draws(num_classes, scoring.draws)
        resampled["nmi"] = normalized_mutual_information(retrieval.labels, clusters, draws)
    return _Sample(values, resampled, int(scored.sum()), len(names), int((~scored).sum()))


def _query_metrics(retrieval: Retrieval, scoring: Scoring) -> dict[str, Float[np.ndarray, " Q"]]:
    return query_metrics(retrieval, scoring.recall_at, scoring.memory_mb, scoring.device)


def _shared_query_metrics(retrieval: Retrieval, scoring: Scoring) -> dict[str, Float[np.ndarray, " Q"]]:
    """Score some of the queries and hear of the others; a query's values do not depend on which others are scored."""
    own = retrieval.queries[local_slice(split_sizes(len(retrieval.queries)))]
    with raise_together():
        metrics = _query_metrics(replace(retrieval, queries=own), scoring)
    parts = [part for part in gather_objects(metrics) if part]  # a process without queries has no metrics
    return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else {})}
