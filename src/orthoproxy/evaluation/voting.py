"""Answer with a label: the nearest neighbors vote."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from orthoproxy.evaluation.bootstrap import Estimate

NEIGHBORS = 10  # that vote in an evaluation, as in `orthoproxy search`
TEMPERATURE = 0.03  # with 0.07 as published, many images of another class outvote the few of a newly enrolled one


@dataclass(frozen=True)
class VoteScores:
    """How a vote errs: queries that get a label although their class is removed or unseen, and wrong answers.

    `confusions` are the most frequent ones: class, answer, number of queries. Without a threshold, all get a label.
    """

    neighbors: int
    threshold: float | None
    false_known: Estimate | None
    false_known_unseen: Estimate | None
    confusions: list[tuple[str, str, int]]


def vote(
    similarity: Float[np.ndarray, "Q k"], labels: Shaped[np.ndarray, "Q k"], threshold: float = -np.inf
) -> tuple[Int[np.ndarray, " Q"], Float[np.ndarray, " Q"]]:
    """Let the nearest neighbors of each query vote for its label, each with weight ``exp(similarity / 0.03)``.

    Parameters
    ----------
    similarity
        Cosines of the neighbors, in any order; -inf for none.
    labels
        Their labels, numbers or text.
    threshold
        Less similar neighbors do not vote. If none does, the answer is "unknown".

    Returns
    -------
    winner
        Column of the most similar neighbor with the winning label, -1 for "unknown". Of labels with equal votes, the
        one with the more similar neighbor wins; if these are equal, too, the first in the order of the labels.
    share
        The winner's share of the vote, 0 for "unknown".

    References
    ----------
    Weights: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018.

    Examples
    --------
    >>> similarity, labels = np.array([[0.9, 0.8, 0.8]]), np.array([["cat", "dog", "cat"]])
    >>> winner, share = vote(similarity, labels)
    >>> labels[0, winner].item(), share.round(2), vote(similarity, labels, threshold=0.95)[0]
    ('cat', array([0.97]), array([-1]))
    """
    order = np.lexsort((labels, -similarity))
    similarity, labels = (np.take_along_axis(x, order, axis=1) for x in (similarity, labels))
    weights = np.where(similarity >= threshold, np.exp(similarity / TEMPERATURE), 0.0)
    votes = np.zeros_like(weights)
    for i in range(weights.shape[1]):
        votes += weights[:, [i]] * (labels == labels[:, [i]])
    best = np.argmax(votes, axis=1)[:, None]
    unknown = weights[:, 0] == 0
    share = np.take_along_axis(votes, best, axis=1)[:, 0] / np.where(unknown, 1, weights.sum(axis=1))
    return np.where(unknown, -1, np.take_along_axis(order, best, axis=1)[:, 0]), share
