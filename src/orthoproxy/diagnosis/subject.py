"""What is diagnosed: a model's embeddings of the images that it was trained on, and of images of unseen classes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from orthoproxy.evaluation import Estimate, Retrieval, bootstrap_means, build_retrieval, estimate


@dataclass(frozen=True)
class Embedded:
    """Images and their embeddings.

    Parameters
    ----------
    table
        From `data.make_table`.
    trained, untrained
        Embeddings of its rows by the model, N x D, and by the encoder before training, N x F.

    Raises
    ------
    ValueError
        If there is not one embedding an image.

    Examples
    --------
    >>> from orthoproxy.data import make_table
    >>> Embedded(make_table(["1.png", "2.png"], ["cat", "dog"]), np.eye(2), np.eye(2)).labels
    array([0, 1])
    """

    table: pd.DataFrame
    trained: Float[np.ndarray, "N D"]
    untrained: Float[np.ndarray, "N F"]

    def __post_init__(self) -> None:
        if not len(self.table) == len(self.trained) == len(self.untrained):
            raise ValueError(
                f"one embedding an image is needed: {len(self.table)} images, {len(self.trained)} trained and "
                f"{len(self.untrained)} untrained embeddings"
            )

    @cached_property
    def labels(self) -> Int[np.ndarray, " N"]:
        """Class number of each row, in the order of the names."""
        return pd.factorize(self.table["label"], sort=True)[0]

    @cached_property
    def names(self) -> list[str]:
        """The classes' names, by number."""
        return sorted(set(self.table["label"]))


@dataclass(frozen=True)
class Subject:
    """A trained model with what its diagnosis needs.

    Parameters
    ----------
    name
        Of the run.
    training
        The images that it was trained on, or some whole classes of them.
    unseen
        Images of classes that it was not trained on; None where there are none.
    unseen_are
        Which these are: ``test`` or ``validation`` classes.
    proxies
        One row a training class; None for a loss without proxies.
    classes
        Their names.
    exclude_group
        Leave a query's own group out of its gallery, as the evaluation does.

    Examples
    --------
    >>> from orthoproxy.data import make_table
    >>> images = Embedded(make_table(["1.png", "2.png"], ["cat", "cat"]), np.eye(2), np.eye(2))
    >>> Subject("run", images, None, "test", None, []).retrieval(images, images.trained).queries
    array([0, 1])
    """

    name: str
    training: Embedded
    unseen: Embedded | None
    unseen_are: str
    proxies: Float[np.ndarray, "C D"] | None
    classes: list[str]
    exclude_group: bool = False

    def retrieval(self, images: Embedded, embeddings: Float[np.ndarray, "N D"]) -> Retrieval:
        """Say who is searched for among whom.

        Parameters
        ----------
        images
            `training` or `unseen`.
        embeddings
            Of these.
        """
        return build_retrieval(embeddings, images.table, self.exclude_group)


def share(values: Float[np.ndarray, " N"], labels: Int[np.ndarray, " N"]) -> Estimate:
    """Average over images, with an interval by the class bootstrap.

    Parameters
    ----------
    values
        One an image, for example 1 where something holds and 0 elsewhere; NaN where an image does not count.
    labels
        Class of each image.

    Returns
    -------
    Estimate
        As a fraction.

    Raises
    ------
    ValueError
        If no image counts.

    Examples
    --------
    >>> print(share(np.array([1.0, 1.0, 1.0, np.nan]), np.array([0, 0, 1, 1])))
    100.0 [100.0, 100.0]
    """
    counted = ~np.isnan(values)
    if not counted.any():
        raise ValueError("no image counts")
    _, classes = np.unique(labels[counted], return_inverse=True)
    return estimate(float(values[counted].mean()), bootstrap_means(values[counted], classes))
