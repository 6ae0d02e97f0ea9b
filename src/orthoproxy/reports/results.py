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
    """A training run and the evaluation of its model."""

    name: str
    evaluation: Evaluation | None  # on the test classes, beside the untrained encoder; None if the dataset has none
    table: pd.DataFrame  # the evaluated images; empty without test classes
    embeddings: Float[np.ndarray, "N D"]  # of the table's rows, by the model
    baseline_embeddings: Float[np.ndarray, "N F"]  # by the untrained encoder
    log: pd.DataFrame  # a row per line of metrics.jsonl; every column except `step` is optional
    proxies: Float[np.ndarray, "C D"] | None  # None for a loss without
    classes: list[str]  # names of the training classes, in the order of the proxies
    config: str  # YAML
    machine: dict[str, str]
    notes: list[str]  # to show at the top of the report
    matching: NoMatchCalibration | None = None  # on the validation classes, if there are any

    def retrieval(self, embeddings: Float[np.ndarray, "N D"]) -> Retrieval:
        """Build the retrieval problem of the evaluation: the same queries, gallery and excluded images."""
        evaluation = self.evaluation
        assert evaluation is not None  # as there are images
        return build_retrieval(embeddings, self.table, evaluation.exclude, evaluation.duplicate_pairs is not None)


def finite_values(log: pd.DataFrame, column: str) -> pd.Series:
    """Return the finite values of a column of the log, indexed by step; empty if the column is missing."""
    if column not in log:
        return pd.Series(dtype=np.float64)
    values = pd.Series(log[column].to_numpy(dtype=np.float64), log["step"].to_numpy(dtype=np.float64))
    return values[np.isfinite(values) & np.isfinite(values.index)]
