"""Input of a diagnosis: embeddings of training images and of images of unseen classes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from orthoproxy.data.table import class_numbers
from orthoproxy.evaluation.retrieval import Exclude


@dataclass(frozen=True)
class EmbeddedSplit:
    """Images of a split and their embeddings.

    Parameters
    ----------
    table
        N images, from `orthoproxy.data.make_table`.
    embeddings, baseline_embeddings
        Embeddings of the rows by the model, N x D, and by the untrained encoder, N x F.

    Examples
    --------
    >>> from orthoproxy.data import make_table
    >>> EmbeddedSplit(make_table(["1.png", "2.png"], ["cat", "dog"]), np.eye(2), np.eye(2)).labels
    array([0, 1])
    """

    table: pd.DataFrame
    embeddings: Float[np.ndarray, "N D"]
    baseline_embeddings: Float[np.ndarray, "N F"]

    @cached_property
    def labels(self) -> Int[np.ndarray, " N"]:
        """Index into `names` of each row's class, -1 for a distractor."""
        return class_numbers(self.table)[0]

    @cached_property
    def names(self) -> list[str]:
        """Names of the classes, sorted."""
        return class_numbers(self.table)[1]


@dataclass(frozen=True)
class DiagnosisInput:
    """A trained model, as `diagnose` needs it.

    Parameters
    ----------
    name
        Name of the run.
    training
        Training images, or those of some whole classes.
    unseen, unseen_split
        Images of classes that were not trained on, None without any; and their split, ``test`` or ``validation``.
    proxies, classes
        C x D, one row per training class, None for a loss without proxies; and the names of the training classes.
    exclude
        What of a query's group leaves its gallery, as in the evaluation.

    Examples
    --------
    >>> from orthoproxy.data import make_table
    >>> split = EmbeddedSplit(make_table(["1.png", "2.png"], ["cat", "cat"]), np.eye(2), np.eye(2))
    >>> DiagnosisInput("run", split, None, "test", None, []).exclude
    'none'
    """

    name: str
    training: EmbeddedSplit
    unseen: EmbeddedSplit | None
    unseen_split: str
    proxies: Float[np.ndarray, "C D"] | None
    classes: list[str]
    exclude: Exclude = "none"
