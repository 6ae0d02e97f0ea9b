"""What a report shows of a training run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from orthoproxy.evaluation import Evaluation, Matching, Retrieval, retrieval_of


@dataclass(frozen=True)
class RunResults:
    """A training run and how its model was judged.

    Parameters
    ----------
    name
        Of the run.
    evaluation
        Scores on the test classes; None where the data had none.
    table
        The images that were judged, from `data.make_table`; may be empty.
    trained, untrained
        Embeddings of the table's rows, N x D and N x F; `untrained` may be None.
    log
        One row a line of ``metrics.jsonl``: `step`, `epoch`, `loss`, `metric_loss`, `orthogonality`, ``rate/...``,
        `images_per_second` and `seconds` since the start; rows of validation hold ``validation/...`` instead. Any
        column but `step` may be missing, and so may all rows.
    proxies
        One row a training class; None for a loss without proxies.
    classes
        Names of the training classes, in the order of `proxies`.
    config
        The run's configuration as YAML.
    machine
        What it ran on, name to value.
    notes
        Warnings to show at the top.
    matching
        How alike right and wrong hits are, on validation classes; None where none were held out.

    Examples
    --------
    >>> from orthoproxy.data import make_table
    >>> results = RunResults(
    ...     name="example",
    ...     evaluation=None,
    ...     table=make_table(["a.png", "b.png"], ["cat", "cat"]),
    ...     trained=np.eye(2),
    ...     untrained=None,
    ...     log=pd.DataFrame(),
    ...     proxies=None,
    ...     classes=[],
    ...     config="",
    ...     machine={},
    ...     notes=[],
    ... )
    >>> results.retrieval(results.trained).queries
    array([0, 1])
    """

    name: str
    evaluation: Evaluation | None
    table: pd.DataFrame
    trained: Float[np.ndarray, "N D"]
    untrained: Float[np.ndarray, "N F"] | None
    log: pd.DataFrame
    proxies: Float[np.ndarray, "C D"] | None
    classes: list[str]
    config: str
    machine: dict[str, str]
    notes: list[str]
    matching: Matching | None = None

    def retrieval(self, embeddings: Float[np.ndarray, "N D"]) -> Retrieval:
        """Say who is searched for among whom, as the evaluation did.

        Parameters
        ----------
        embeddings
            `trained` or `untrained`.
        """
        has_groups = bool((self.table["group"] != "").any())
        exclude_group = has_groups if self.evaluation is None else self.evaluation.exclude_group
        return retrieval_of(embeddings, self.table, exclude_group)


def finite(log: pd.DataFrame, column: str) -> Float[np.ndarray, " P"]:
    """Return the finite numbers in a column of the log, in order.

    Parameters
    ----------
    log
        See `RunResults`.
    column
        May be missing.

    Returns
    -------
    numpy.ndarray
        Possibly empty.

    Examples
    --------
    >>> finite(pd.DataFrame({"loss": [2.0, None, 1.0]}), "loss"), finite(pd.DataFrame(), "loss")
    (array([2., 1.]), array([], dtype=float64))
    """
    if column not in log:
        return np.empty(0)
    values = log[column].to_numpy(dtype=np.float64)
    return values[np.isfinite(values)]
