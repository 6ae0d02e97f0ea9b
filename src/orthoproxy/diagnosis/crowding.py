"""Do the proxies use the directions that they have, and does each stand alone?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from orthoproxy.diagnosis.figures import spectrum_beside_random_figure
from orthoproxy.diagnosis.findings import Check, Finding, Shot
from orthoproxy.diagnosis.subject import Embedded, Subject, share
from orthoproxy.evaluation import Estimate
from orthoproxy.reports.geometry import (
    Pair,
    closest_pairs,
    effective_rank,
    orthogonality_distance,
    unit_rows,
    welch_floor,
)
from orthoproxy.reports.html import Plot, figure_to_svg
from orthoproxy.reports.text import percent

NAME = "proxies"
COLLAPSED = 0.5  # of the effective rank that random directions have
CROWDED = 0.5  # cosine of two proxies, 60 degrees apart
LEAST_SHARE = 0.01  # of the training images that are nearer to a wrong proxy: without that there is no harm
ROWS_AT_ONCE, SHOWN = 4096, 6
ADVICE = [
    "Set initialisation.proxies to class_means, and check that training.rates.proxies is some 100 times the encoder's.",
    "Soft Orthogonality spreads them: loss.orthogonality.weight 0.3 to 3 with scaling excess. From class means that "
    "did not raise Recall@1 in the studies of the documentation: let validation classes decide.",
]
SAME = "Look whether the closest classes are one and the same thing; merge those that are."


@dataclass(frozen=True)
class Crowding:
    """How the proxies lie; `astray` and `to_crowded` are shares of the training images.

    `astray`: nearer to another class's proxy than to their own; `to_crowded`: and that one has a cosine of at least
    0.5 with their own.
    """

    classes: int
    dim: int
    effective_rank: float
    random_rank: float
    largest_cosine: float
    squares: float
    floor: float
    crowded_classes: int
    astray: Estimate
    to_crowded: Estimate


def check_proxies(subject: Subject) -> Check:
    """Look for collapsed and for crowded proxies.

    Parameters
    ----------
    subject
        What is diagnosed.

    Returns
    -------
    Check
        With a finding if one training image in a hundred or more is nearer to a wrong proxy, and the proxies' effective
        rank is below half of that of random directions; or the wrong proxies are within 60 degrees of the right ones.

    Examples
    --------
    >>> from orthoproxy.data import make_table
    >>> from orthoproxy.diagnosis.subject import Embedded
    >>> images = Embedded(make_table(["1.png", "2.png"], ["a", "b"]), np.eye(2), np.eye(2))
    >>> check_proxies(Subject("run", images, None, "test", np.eye(2), ["a", "b"])).finding is None
    True
    """
    proxies = subject.proxies
    if proxies is None or len(proxies) < 2:
        return Check(NAME, "not looked at: the loss has no proxies")
    if not np.isfinite(proxies).all():
        return Check(NAME, "not looked at: the proxies hold values that are not numbers; training diverged")
    found = crowding(proxies, subject.classes, subject.training.trained, subject.training.table["label"].tolist())
    summary = (
        f"{found.classes:,} proxies use {found.effective_rank:.1f} of {min(found.classes, found.dim)} directions "
        f"(random ones would use {found.random_rank:.1f}); the largest cosine of two is {found.largest_cosine:.2f}; "
        f"{percent(found.astray)} of the training images are nearer to another class's proxy"
    )
    measured = {**vars(found), "astray": vars(found.astray), "to_crowded": vars(found.to_crowded)}
    return Check(NAME, summary, measured, _finding(found, proxies, subject))


def crowding(
    proxies: Float[np.ndarray, "C D"],
    classes: Sequence[str],
    embeddings: Float[np.ndarray, "N D"],
    labels: Sequence[str],
) -> Crowding:
    """Measure how the proxies lie, and where the training images are among them.

    Parameters
    ----------
    proxies
        One row a class, at least two.
    classes
        Their names.
    embeddings
        Of training images, by the model that the proxies belong to.
    labels
        Their classes' names, all among `classes`.

    Returns
    -------
    Crowding
        See there.

    Examples
    --------
    >>> found = crowding(np.array([[1.0, 0.0], [0.8, 0.6]]), ["a", "b"], np.eye(2), ["a", "b"])
    >>> round(found.largest_cosine, 2), found.crowded_classes, print(found.astray)
    0.0 [0.0, 0.0]
    (0.8, 2, None)
    """
    number = {name: place for place, name in enumerate(classes)}
    own = np.array([number[label] for label in labels])
    units = unit_rows(proxies)
    wrong, crowded_with = _astray(units, unit_rows(embeddings), own)
    return Crowding(
        *proxies.shape,
        effective_rank=effective_rank(proxies),
        random_rank=float(np.mean([effective_rank(x) for x in _random_like(proxies, 3)])),
        largest_cosine=closest_pairs(proxies, classes, 1)[0].cosine,
        squares=orthogonality_distance(proxies),
        floor=welch_floor(*proxies.shape),
        crowded_classes=_crowded_classes(units),
        astray=share(wrong.astype(float), own),
        to_crowded=share(crowded_with.astype(float), own),
    )


def _astray(
    units: Float[np.ndarray, "C D"], images: Float[np.ndarray, "N D"], own: Int[np.ndarray, " N"]
) -> tuple[np.ndarray, np.ndarray]:
    """Say of each image whether another proxy is nearer than its own, and whether that one is crowded with its own."""
    nearest = np.empty(len(images), dtype=np.int64)
    for start in range(0, len(images), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        nearest[part] = (images[part] @ units.T).argmax(axis=1)
    wrong = nearest != own
    close = np.einsum("nd,nd->n", units[nearest], units[own]) >= CROWDED
    return wrong, wrong & close


def _crowded_classes(units: Float[np.ndarray, "C D"]) -> int:
    count = 0
    for start in range(0, len(units), ROWS_AT_ONCE):
        cosines = units[start : start + ROWS_AT_ONCE] @ units.T
        cosines[np.arange(len(cosines)), start + np.arange(len(cosines))] = -1
        count += int((cosines.max(axis=1) >= CROWDED).sum())
    return count


def _random_like(proxies: Float[np.ndarray, "C D"], draws: int) -> list[np.ndarray]:
    return [np.random.default_rng(seed).standard_normal(proxies.shape) for seed in range(draws)]


def _finding(found: Crowding, proxies: Float[np.ndarray, "C D"], subject: Subject) -> Finding | None:
    closest = closest_pairs(proxies, subject.classes, SHOWN)
    collapsed = found.effective_rank < COLLAPSED * found.random_rank
    astray, to_crowded = found.astray, found.to_crowded
    if collapsed and astray.low > 0 and astray.value >= LEAST_SHARE:
        title, effect, advice = "The proxies have collapsed into few directions", found.astray, [*ADVICE, SAME]
        of = "of training images, which are nearer to another class's proxy than to their own"
    elif to_crowded.low > 0 and to_crowded.value >= LEAST_SHARE:
        title, effect = "Some proxies crowd together, and their classes' images mix", found.to_crowded
        advice = [SAME, *ADVICE]
        of = "of training images, which are nearer to a proxy that crowds their own"
    else:
        return None
    evidence = [
        f"The {found.classes:,} proxies use {found.effective_rank:.1f} directions, as their effective rank counts; as "
        f"many random ones would use {found.random_rank:.1f} of the {min(found.classes, found.dim)} that there are.",
        f"The sum of their squared cosines is {found.squares:,.1f}; the least possible, the Welch bound, is "
        f"{found.floor:,.1f}. {found.crowded_classes:,} of them have another within 60 degrees.",
        f"{percent(found.astray)} of the training images are nearer to another class's proxy than to their own, "
        f"{percent(found.to_crowded)} to one that crowds it.",
    ]
    return Finding(
        title,
        effect,
        of,
        evidence,
        advice,
        _plot(found, proxies) if collapsed else None,
        heads=["Class", "Class", "Cosine of the proxies"],
        rows=[_row(pair) for pair in closest],
        shots=[shots for pair in closest if (shots := _shots(pair, subject.training))],
        shots_say="The classes whose proxies are the closest, a training image of each.",
    )


def _shots(pair: Pair, images: Embedded) -> list[Shot]:
    first = images.table.drop_duplicates("label").set_index("label")["path"]
    names = (pair.first, pair.second)
    return [Shot(first[name], name) for name in names] if set(names) <= set(first.index) else []


def _row(pair: Pair) -> list[str]:
    return [pair.first, pair.second, f"{pair.cosine:.3f}".replace("-", "\N{MINUS SIGN}")]


def _plot(found: Crowding, proxies: Float[np.ndarray, "C D"]) -> Plot:
    said = f"Singular values of the proxies; effective rank {found.effective_rank:.1f}, random {found.random_rank:.1f}"
    return Plot(
        "How much of the proxies lies in each direction",
        "The sooner the line falls, the fewer directions keep the classes apart.",
        figure_to_svg(spectrum_beside_random_figure(proxies, _random_like(proxies, 1)[0]), "crowding", said),
    )
