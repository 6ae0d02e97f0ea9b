"""Which training images are likely to have a wrong label, as models say that did not see the image?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import beta

from orthoproxy.diagnosis.figures import margin_figure
from orthoproxy.diagnosis.findings import Check, Finding, Shot
from orthoproxy.diagnosis.subject import Embedded, Subject
from orthoproxy.evaluation import Estimate
from orthoproxy.reports.geometry import unit_rows
from orthoproxy.reports.html import Plot, figure_to_svg
from orthoproxy.reports.text import percent
from orthoproxy.training import principal_weight

NAME = "labels"
WHITENING = 0.5  # of the features' principal directions; chosen by benchmarks/label_errors.py
OUTLANDISH = 0.8  # share of the other classes that are more like the image than its own is
FEWEST, LEAST_SHARE = 3, 0.01  # suspects, and wrong labels for certain, that make a finding; fewer may be odd images
PLANTED = 0.05  # share of labels that the check of the check changes
TRIALS = 5
LEAST_PRECISION = 0.75  # in that check, or nothing is said
MOST = 0.25  # share of wrong labels; more says that the features know little of the classes
LEAST_CLASSES = 10  # with fewer, the place of a class among the others says little
ROWS_AT_ONCE = 1024
PICTURES, LISTED = 6, 20
ADVICE = [
    "Look at the suspects, the worst first, and correct or remove those that are wrong. --json FILE lists all of them.",
    "Then train again: a wrong label teaches the model to put two classes in one place.",
]


@dataclass(frozen=True)
class OutOfSample:
    """How the classes look to each image through means that it has no part in.

    `margin` is the cosine with the mean of its own class minus the largest with another's; `place` the share of other
    classes that are more similar than its own, 0 for the best; `looks_like` the number of the most similar other class.
    NaN, NaN and -1 for an image that is alone in its class.
    """

    margin: Float[np.ndarray, " N"]
    place: Float[np.ndarray, " N"]
    looks_like: Int[np.ndarray, " N"]


@dataclass(frozen=True)
class Suspects:
    """Rows of the likely wrong labels, the most suspicious first, and the share of wrong labels there seem to be."""

    rows: Int[np.ndarray, " S"]
    share: Estimate
    judged: int


@dataclass(frozen=True)
class Planting:
    """What became of labels that were changed at random, in all trials together.

    `suspects` leaves out the images that looked wrong before, as these are no mistake of the check: as many as the
    estimate says, which are more than are listed. `found` of these were changed.
    """

    planted: int
    suspects: int
    found: int

    @property
    def precision(self) -> float:
        """Share of the new suspects whose label was changed."""
        return self.found / max(1, self.suspects)

    @property
    def recall(self) -> float:
        """Share of the changed labels that are among the new suspects."""
        return self.found / max(1, self.planted)


def check_labels(subject: Subject) -> Check:
    """Look for wrong labels among the training images.

    Parameters
    ----------
    subject
        What is diagnosed; its untrained features are used, since the trained encoder has learned the wrong labels too.

    Returns
    -------
    Check
        With a finding if surely one label in a hundred is wrong, and wrong labels can be told: with 5 % of the labels
        changed at random, at least three quarters of the new suspects are changed ones; and no more than a quarter of
        all labels seems wrong, which may say as much of the features as of the labels.

    Examples
    --------
    >>> from orthoproxy.data import make_table
    >>> images = Embedded(make_table(["1.png", "2.png"], ["cat", "cat"]), np.eye(2), np.eye(2))
    >>> check_labels(Subject("run", images, None, "test", None, [])).summary
    'not looked at: it takes 10 training classes with two images or more'
    """
    images = subject.training
    sizes = np.bincount(images.labels)
    if (sizes > 1).sum() < LEAST_CLASSES:
        return Check(NAME, f"not looked at: it takes {LEAST_CLASSES} training classes with two images or more")
    features = evened(images.untrained)
    seen = out_of_sample(features, images.labels)
    found, trial = suspects(seen), plant_and_find(features, images.labels, seen)
    told = (
        f"with {100 * PLANTED:.0f} % of the labels changed at random, {100 * trial.precision:.0f} % of those newly "
        f"listed were changed ones, and {100 * trial.recall:.0f} % of the changed ones were listed"
    )
    summary = f"{percent(found.share)} of the training labels look wrong, {len(found.rows):,} of them listed; {told}"
    listed = [_entry(images, seen, row) for row in found.rows.tolist()]
    measured = {"share": asdict(found.share), "judged": found.judged, "suspects": listed, "planting": _told(trial)}
    if trial.precision < LEAST_PRECISION:
        summary = f"cannot be told: the untrained features are too weak for it; {told}"
        return Check(NAME, summary, {**measured, "suspects": []}, unclear=True)
    if found.share.low > MOST:
        so_many = f"cannot be told: {percent(found.share)} of the training labels look wrong"
        either = (
            "so many are, or the untrained features know little of these classes; --json FILE lists suspects to look at"
        )
        return Check(NAME, f"{so_many}; {either}", measured, unclear=True)
    enough = len(found.rows) >= FEWEST and found.share.low >= LEAST_SHARE
    finding = _finding(images, seen, found, told) if enough else None
    return Check(NAME, summary, measured, finding)


def evened(features: Float[np.ndarray, "N F"], whitening: float = WHITENING) -> Float[np.ndarray, "N F"]:
    """Turn features to their principal directions and divide each by a root of its energy, the fourth if half whitened.

    This is the data-driven start of the projection at full width. It knows no label.

    Parameters
    ----------
    features
        Of the untrained encoder.
    whitening
        0 keeps the energies, 1 makes them equal.

    Returns
    -------
    numpy.ndarray
        Unit rows in float64.

    Examples
    --------
    >>> evened(np.array([[1.0, 0.0], [1.0, 0.2], [1.0, -0.2]])).shape
    (3, 2)
    """
    units = torch.from_numpy(unit_rows(features))
    return unit_rows((units @ principal_weight(units, units.shape[1], whitening).T).numpy())


def out_of_sample(features: Float[np.ndarray, "N F"], labels: Int[np.ndarray, " N"]) -> OutOfSample:
    """Compare each image with the mean of each class, its own mean taken without it.

    That is a nearest-mean classifier with as many folds as images: a mean without one row is the class's sum minus
    the row, so all folds cost what one costs, and each image is judged by a model that did not see it.

    Parameters
    ----------
    features
        Unit rows.
    labels
        Class of each, 0 to C - 1.

    Returns
    -------
    OutOfSample
        One value an image.

    Examples
    --------
    >>> x = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    >>> seen = out_of_sample(x, np.array([0, 0, 1, 1, 0]))  # the last label is wrong
    >>> seen.margin.round(2), seen.looks_like
    (array([ 0.71,  0.71,  0.55,  0.55, -1.  ]), array([1, 1, 0, 0, 1]))
    """
    count = int(labels.max()) + 1
    sums = np.zeros((count, features.shape[1]))
    np.add.at(sums, labels, features)
    means, sizes = unit_rows(sums), np.bincount(labels, minlength=count)
    margin, place = np.full(len(labels), np.nan), np.full(len(labels), np.nan)
    looks_like = np.full(len(labels), -1)
    judged = np.flatnonzero(sizes[labels] > 1)
    for start in range(0, len(judged), ROWS_AT_ONCE):
        rows = judged[start : start + ROWS_AT_ONCE]
        x, own = features[rows], labels[rows]
        cosines = x @ means.T  # b C
        to_own = np.einsum("nf,nf->n", x, unit_rows(sums[own] - x))
        cosines[np.arange(len(rows)), own] = -np.inf
        looks_like[rows] = cosines.argmax(axis=1)
        margin[rows] = to_own - cosines.max(axis=1)
        ahead = (cosines > to_own[:, None]).sum(axis=1) + (cosines >= to_own[:, None]).sum(axis=1)  # a tie: half ahead
        place[rows] = ahead / (2 * max(1, count - 1))
    return OutOfSample(margin, place, looks_like)


def suspects(seen: OutOfSample) -> Suspects:
    """Estimate how many labels are wrong, and list as many as surely are.

    To an image with a label drawn at random, the label's class has any place among the classes, each as likely as
    the other. To an image with its right label it has one of the first places, or nearly always. So five times the
    share of images with a place in the last fifth estimates the share of wrong labels. Its lower bound (95 %, Clopper
    and Pearson) says how many are listed: those with the smallest margins. Wrong labels of a *similar* class are not
    counted.

    Parameters
    ----------
    seen
        From `out_of_sample`.

    Returns
    -------
    Suspects
        Possibly without rows.

    References
    ----------
    Storey, "A direct approach to false discovery rates", Journal of the Royal Statistical Society B, 2002, which counts
    what is uniform in the same way. Northcutt, Jiang and Chuang, "Confident learning", Journal of Artificial
    Intelligence Research, 2021, for judging labels by predictions out of sample.

    Examples
    --------
    >>> place = np.array([0.0] * 90 + [0.9] * 10)
    >>> found = suspects(OutOfSample(0.5 - place, place, np.zeros(100, dtype=int)))
    >>> round(found.share.value, 2), len(found.rows)
    (0.5, 24)
    """
    judged = int(np.isfinite(seen.place).sum())
    count, last = int((seen.place > OUTLANDISH).sum()), 1 - OUTLANDISH
    low = float(beta.ppf(0.025, count, judged - count + 1)) if count else 0.0
    high = float(beta.ppf(0.975, count + 1, judged - count)) if count < judged else 1.0
    bounds = [min(1.0, value / last) for value in (count / max(1, judged), low, high)]
    order = np.argsort(seen.margin, kind="stable")  # NaN last
    return Suspects(order[: int(bounds[1] * judged)], Estimate(*bounds), judged)


def plant(
    labels: Int[np.ndarray, " N"], fraction: float = PLANTED, seed: int = 0
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " K"]]:
    """Change some labels to another class, drawn at random.

    Parameters
    ----------
    labels
        0 to C - 1, with C at least 2.
    fraction
        Share of the labels to change.
    seed
        Of the draw.

    Returns
    -------
    labels
        A copy.
    rows
        Where it was changed.

    Examples
    --------
    >>> labels, rows = plant(np.zeros(20, dtype=int) + np.arange(20) % 2)
    >>> int((labels != np.arange(20) % 2).sum()), len(rows)
    (1, 1)
    """
    generator, count = np.random.default_rng(seed), int(labels.max()) + 1
    rows = generator.choice(len(labels), round(fraction * len(labels)), replace=False)
    changed = labels.copy()
    changed[rows] = (labels[rows] + generator.integers(1, count, len(rows))) % count
    return changed, rows


def plant_and_find(
    features: Float[np.ndarray, "N F"], labels: Int[np.ndarray, " N"], seen: OutOfSample, trials: int = TRIALS
) -> Planting:
    """Check the check: change 5 % of the labels, and count how many of these are found.

    Parameters
    ----------
    features
        From `evened`; they do not depend on labels, so that nothing has to be computed again.
    labels
        As they are.
    seen
        From `out_of_sample`, with these.
    trials
        How many times, each from the labels as they are.

    Returns
    -------
    Planting
        Sums over the trials.

    Examples
    --------
    >>> labels = np.repeat(np.arange(30), 20)
    >>> centres = np.random.default_rng(0).standard_normal((30, 50))
    >>> trial = plant_and_find(centres[labels], labels, out_of_sample(centres[labels], labels))
    >>> trial.planted, round(trial.precision, 1)
    (150, 1.0)
    """
    found = suspects(seen)
    before = np.argsort(seen.margin, kind="stable")[: round(found.share.value * found.judged)]
    counts = np.zeros(3, dtype=int)
    for seed in range(trials):
        changed, rows = plant(labels, PLANTED, seed)
        new = np.setdiff1d(suspects(out_of_sample(features, changed)).rows, before)
        counts += [len(rows), len(new), len(np.intersect1d(new, rows))]
    return Planting(*counts.tolist())


def _finding(images: Embedded, seen: OutOfSample, found: Suspects, told: str) -> Finding:
    rows = found.rows.tolist()
    return Finding(
        "Some training labels are likely wrong",
        found.share,
        "of training images",
        [
            f"{percent(found.share)} of {found.judged:,} training images are as unlike the rest of their class as an "
            f"image with a random label is; the {len(rows):,} most suspicious are listed.",
            "Each was compared with class means of the untrained encoder's features, that of its own class without it. "
            f"As a check, {told}.",
        ],
        ADVICE,
        Plot(
            "Is an image like its own class?",
            "Left of 0, another class is more like the image than its own. Many images there are only hard; the "
            "suspects are those at the far left.",
            figure_to_svg(
                margin_figure(seen.margin[np.isfinite(seen.margin)], len(rows)), "labels", "Histogram of the margins"
            ),
        ),
        heads=["Image", "Label", "Looks like"],
        rows=[[x["path"], x["label"], x["looks_like"]] for x in (_entry(images, seen, row) for row in rows[:LISTED])],
        shots=[_shots(images, seen, row) for row in rows[:PICTURES]],
        shots_say="A suspect, an image of the class that its label names, and one of the class that it looks like.",
    )


def _entry(images: Embedded, seen: OutOfSample, row: int) -> dict[str, Any]:
    path, label = images.table["path"].iloc[row], images.table["label"].iloc[row]
    margin = round(float(seen.margin[row]), 4)
    return {"path": path, "label": label, "looks_like": images.names[seen.looks_like[row]], "margin": margin}


def _told(trial: Planting) -> dict[str, float]:
    return {**asdict(trial), "precision": round(trial.precision, 4), "recall": round(trial.recall, 4)}


def _shots(images: Embedded, seen: OutOfSample, row: int) -> list[Shot]:
    paths, labels = images.table["path"].tolist(), images.labels
    shots = [Shot(paths[row], images.names[labels[row]], "suspect", asked=True)]
    for number, note in ((labels[row], "its label"), (seen.looks_like[row], "looks like")):
        others = np.flatnonzero((labels == number) & (np.arange(len(labels)) != row))
        typical = others[np.argmax(seen.margin[others])]  # the one that is the most like its class
        shots.append(Shot(paths[typical], images.names[number], note))
    return shots
