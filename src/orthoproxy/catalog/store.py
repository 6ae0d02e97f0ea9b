"""What a catalog needs of the database that stores it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
from jaxtyping import Float

from orthoproxy.catalog.filters import Condition

TEXT_FIELDS = {"id": 32, "path": 4096, "label": 1024, "group": 1024, "content": 64}  # maximum bytes
HIT_FIELDS = ["id", "path", "label", "group"]


class Store(ABC):
    """A table with the columns of `TEXT_FIELDS`, of which ``id`` is the primary key, and ``embedding``.

    Writes are durable on return. Reads see all writes of this process; errors are InputError.
    """

    address: str
    meta: str  # of the catalog, as JSON
    exact_below: int  # rows; above, `build_index` makes search approximate and fast

    @abstractmethod
    def upsert(self, rows: pd.DataFrame, embeddings: Float[np.ndarray, "N D"]) -> None:
        """Insert rows with distinct ids, replacing those that exist."""

    @abstractmethod
    def delete(self, ids: Sequence[str]) -> int:
        """Delete rows and return how many existed."""

    @abstractmethod
    def get(self, ids: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
        """Return rows by id, in any order."""

    @abstractmethod
    def pages(self, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        """Yield all rows, a few thousand at a time."""

    @abstractmethod
    def count(self) -> int:
        """Count the rows."""

    @abstractmethod
    def search(self, queries: Float[np.ndarray, "Q D"], k: int, where: Condition | None) -> list[pd.DataFrame]:
        """Return `HIT_FIELDS` and ``similarity`` of the k nearest rows that meet a condition, for each query."""

    @property
    @abstractmethod
    def index_type(self) -> str:
        """``FLAT`` if there is no index for approximate search, or it must be built again."""

    @abstractmethod
    def build_index(self, measure_recall: Callable[[], float]) -> None:
        """Index the rows for approximate search, if possible with a recall of at least 0.99."""

    @abstractmethod
    def optimize(self) -> None:
        """Tidy up after many writes."""

    @abstractmethod
    def close(self) -> None:
        """Release files or connections; may be called more than once."""

    @contextmanager
    def undoable(self, deletes: bool = False) -> Iterator[None]:
        """Keep the present rows for `undo`, if what follows changes them and the store can.

        Raises InputError during a migration, unless it only deletes.
        """
        yield
