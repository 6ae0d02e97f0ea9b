"""Is the model much better on the classes that it was trained on than on unseen ones?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float, Int

from orthoproxy.diagnosis.figures import bars_figure
from orthoproxy.diagnosis.findings import Check, Finding
from orthoproxy.diagnosis.subject import Embedded, Subject
from orthoproxy.evaluation import Estimate, bootstrap_means, build_retrieval, estimate, query_metrics
from orthoproxy.reports.html import Plot, figure_to_svg
from orthoproxy.reports.text import percent, points

NAME = "overfitting"
LEAST_GAP = 0.05  # of Recall@1; the whole interval must lie above
DRAWS = 3  # of classes and images that make the two sides equally large
ADVICE = [
    "More training classes, even with few images each: what holds for many classes holds for new ones.",
    "Stronger augmentation: smaller data.augmentation.crop_scale, jitter; for a vision transformer encoder.drop_path.",
    "A lower training.rates.backbone or fewer training.epochs, chosen on validation classes.",
]


@dataclass(frozen=True)
class Gap:
    """Recall@1 among equally many images of training and of unseen classes, by the model and by the untrained encoder.

    `beyond` is the model's gap minus the untrained encoder's: what training alone has opened.
    """

    training: Estimate
    unseen: Estimate
    untrained_training: Estimate
    untrained_unseen: Estimate
    beyond: Estimate
    classes: int


def check_overfitting(subject: Subject) -> Check:
    """Compare Recall@1 on training classes with that on unseen ones.

    Parameters
    ----------
    subject
        What is diagnosed.

    Returns
    -------
    Check
        With a finding if the gap, beyond that of the untrained encoder, is surely above 5 points.

    Examples
    --------
    >>> from orthoproxy.data import make_table
    >>> images = Embedded(make_table(["1.png", "2.png"], ["cat", "cat"]), np.eye(2), np.eye(2))
    >>> check_overfitting(Subject("run", images, None, "test", None, [])).summary
    'not looked at: there are no unseen classes'
    """
    if subject.unseen is None:
        return Check(NAME, "not looked at: there are no unseen classes")
    gap = recall_gap(subject.training, subject.unseen, subject.exclude_group)
    if gap is None:
        return Check(NAME, "not looked at: no image has another one of its class to find")
    summary = (
        f"Recall@1 is {percent(gap.training)} on training classes and {percent(gap.unseen)} on unseen ones, "
        f"among equally many images; the untrained encoder's is {percent(gap.untrained_training)} and "
        f"{percent(gap.untrained_unseen)}"
    )
    measured = asdict(gap)
    if gap.beyond.low <= LEAST_GAP:
        return Check(NAME, summary, measured)
    finding = Finding(
        "It knows its training classes better than it recognises new ones",
        gap.beyond,
        "of Recall@1 between training and unseen classes",
        [
            f"{summary}.",
            f"So training opened a gap of {points(gap.beyond)}. No model closes it wholly, but it is what more general "
            "features could win.",
        ],
        ADVICE,
        _plot(gap),
        unit="points",
    )
    return Check(NAME, summary, measured, finding)


def recall_gap(training: Embedded, unseen: Embedded, exclude_group: bool = False, seed: int = 0) -> Gap | None:
    """Measure Recall@1 on both sides, with as many classes and images in the one gallery as in the other.

    Both sides give equally many classes, drawn at random. They are paired by size, and the larger of each pair gives as
    many images as the smaller has. This is done three times, and the values are pooled. Every image is query and
    gallery.

    Parameters
    ----------
    training, unseen
        The two sides.
    exclude_group
        Leave a query's own group out of its gallery.
    seed
        Of the draws.

    Returns
    -------
    Gap or None
        With class-bootstrap intervals; None where a side has no query with a positive.

    Examples
    --------
    >>> from orthoproxy.data import make_table
    >>> table = make_table(["1", "2", "3", "4"], ["a", "a", "b", "b"])
    >>> good, bad = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]]), np.array([[1, 0], [0, 1], [1, 0.1], [0.1, 1]])
    >>> gap = recall_gap(Embedded(table, good, bad), Embedded(table, bad, bad))
    >>> print(gap.training, "and", gap.unseen)
    100.0 [100.0, 100.0] and 0.0 [0.0, 0.0]
    """
    sides = {"training": training, "unseen": unseen}
    generator = np.random.default_rng(seed)
    values: dict[str, list[np.ndarray]] = {
        f"{model}/{side}": [] for side in sides for model in ("trained", "untrained")
    }
    classes: dict[str, list[np.ndarray]] = {side: [] for side in sides}
    for _ in range(DRAWS):
        for (side, images), rows in zip(sides.items(), _alike(training.labels, unseen.labels, generator), strict=True):
            table = images.table.iloc[rows].assign(role="both")
            for model in ("trained", "untrained"):
                retrieval = build_retrieval(getattr(images, model)[rows], table, exclude_group)
                values[f"{model}/{side}"].append(query_metrics(retrieval, [1])["recall@1"])
            classes[side].append(images.labels[rows])
    found = {name: np.concatenate(parts) for name, parts in values.items()}
    numbers = {side: np.concatenate(parts) for side, parts in classes.items()}
    if any(np.isnan(x).all() for x in found.values()):
        return None
    drawn = {name: _resampled(x, numbers[name.split("/")[1]], name.endswith("unseen")) for name, x in found.items()}
    at = {name: float(np.nanmean(x)) for name, x in found.items()}

    def beyond(x: dict[str, float] | dict[str, np.ndarray]) -> float | np.ndarray:
        opened = x["trained/training"] - x["trained/unseen"]
        return opened - (x["untrained/training"] - x["untrained/unseen"])

    return Gap(
        *(
            estimate(at[f"{model}/{side}"], drawn[f"{model}/{side}"])
            for model in ("trained", "untrained")
            for side in sides
        ),
        beyond=estimate(float(beyond(at)), np.asarray(beyond(drawn))),
        classes=min(len(set(images.labels.tolist())) for images in sides.values()),
    )


def _alike(
    first: Int[np.ndarray, " N"], second: Int[np.ndarray, " M"], generator: np.random.Generator
) -> Iterator[Int[np.ndarray, " K"]]:
    """Draw rows of both sides: equally many classes of the same sizes."""
    count = min(len(np.unique(first)), len(np.unique(second)))
    drawn = []
    for labels in (first, second):
        names, sizes = np.unique(labels, return_counts=True)
        chosen = generator.choice(len(names), size=count, replace=False)
        largest_first = chosen[np.argsort(-sizes[chosen], kind="stable")]
        drawn.append((names[largest_first], sizes[largest_first]))
    sizes = np.minimum(drawn[0][1], drawn[1][1])
    for labels, (names, _) in zip((first, second), drawn, strict=True):
        of_class = np.argsort(labels, kind="stable")
        start = np.searchsorted(labels[of_class], names)
        end = np.searchsorted(labels[of_class], names, side="right")
        parts = [
            generator.choice(of_class[a:b], size=size, replace=False)
            for a, b, size in zip(start, end, sizes, strict=True)
        ]
        yield np.sort(np.concatenate(parts))


def _resampled(
    values: Float[np.ndarray, " Q"], classes: Int[np.ndarray, " Q"], second: bool
) -> Float[np.ndarray, " W"]:
    """Bootstrap over classes; the two sides are drawn independently, both models of a side alike."""
    counted = ~np.isnan(values)
    _, numbers = np.unique(classes[counted], return_inverse=True)
    return bootstrap_means(values[counted], numbers, seed=int(second))


def _plot(gap: Gap) -> Plot:
    bars = {
        "trained": {"training classes": gap.training, "unseen classes": gap.unseen},
        "untrained": {"training classes": gap.untrained_training, "unseen classes": gap.untrained_unseen},
    }
    said = f"Recall@1 of the model: training classes {percent(gap.training)}, unseen classes {percent(gap.unseen)}"
    return Plot(
        "Recall@1 on training and on unseen classes",
        f"Equally many images of {gap.classes:,} classes each. The untrained encoder knows neither: its gap is how "
        "much easier the training classes are by themselves.",
        figure_to_svg(bars_figure(bars, "% found at first"), "overfitting", said),
    )
