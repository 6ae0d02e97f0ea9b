"""The results of a training run, as its report shows them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from orthoproxy.evaluation import Evaluation, NoMatchCalibration, Retrieval
from orthoproxy.evaluation.evaluate import build_retrieval


@dataclass(frozen=True)
class RunResults:
    """A training run and the evaluation of its model.

    Parameters
    ----------
    name
        Name of the run.
    evaluation
        Scores on the test classes; None if the dataset has none.
    table
        The evaluated images, from `orthoproxy.data.make_table`; may be empty.
    embeddings, baseline_embeddings
        Embeddings of the table's rows by the model (N x D) and by the untrained encoder (N x F, or None).
    log
        One row per line of ``metrics.jsonl``: `step`, `loss`, `metric_loss`, `orthogonality`, ``lr/...``,
        `images_per_second` and `seconds` since the start, or ``validation/...``. Every column except `step` is
        optional.
    proxies
        One row per training class; None for a loss without proxies.
    classes
        Names of the training classes, in the order of `proxies`.
    config
        Configuration of the run as YAML.
    machine
        Hardware and software of the run, name to value.
    notes
        Warnings to show at the top of the report.
    matching
        Similarities of true and false matches on the validation classes; None without validation classes.

    Examples
    --------
    >>> from orthoproxy.data import make_table
    >>> table = make_table(["a.png", "b.png"], ["cat", "cat"])
    >>> results = RunResults("example", None, table, np.eye(2), None, pd.DataFrame(), None, [], "", {}, [])
    >>> results.retrieval(results.embeddings).queries
    array([0, 1])
    """

    name: str
    evaluation: Evaluation | None
    table: pd.DataFrame
    embeddings: Float[np.ndarray, "N D"]
    baseline_embeddings: Float[np.ndarray, "N F"] | None
    log: pd.DataFrame
    proxies: Float[np.ndarray, "C D"] | None
    classes: list[str]
    config: str
    machine: dict[str, str]
    notes: list[str]
    matching: NoMatchCalibration | None = None

    def retrieval(self, embeddings: Float[np.ndarray, "N D"]) -> Retrieval:
        """Build the retrieval problem of the evaluation: the same queries, gallery and excluded groups."""
        has_groups = bool((self.table["group"] != "").any())
        exclude_group = has_groups if self.evaluation is None else self.evaluation.exclude_same_group
        return build_retrieval(embeddings, self.table, exclude_group)


def finite_values(log: pd.DataFrame, column: str) -> Float[np.ndarray, " P"]:
    """Return the finite values of a column of the log; empty if the column is missing."""
    if column not in log:
        return np.empty(0)
    values = log[column].to_numpy(dtype=np.float64)
    return values[np.isfinite(values)]
