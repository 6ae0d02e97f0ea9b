"""Rows for catalogs, and a process that writes some and tidies up."""

from typing import Any

import numpy as np
import pandas as pd

from orthoproxy.catalog import lance
from orthoproxy.catalog.catalog import Catalog, image_id

DIM = 16


def some(count: int, seed: int = 0, dim: int = DIM) -> tuple[pd.DataFrame, np.ndarray]:
    """Images in five classes and three groups, one in ten without a group."""
    numbers = np.arange(count)
    paths = [f"{number % 5}/{number}.png" for number in numbers]
    rows = pd.DataFrame({"id": map(image_id, paths), "path": paths})
    rows["label"] = [f"class {number % 5}" for number in numbers]
    rows["group"] = ["" if number % 10 == 9 else f"camera {number % 3}" for number in numbers]
    rows["content"] = [f"{number:032x}" for number in numbers]
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return rows, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_parts(folder: str, start: int, barrier: Any) -> None:
    lance.MAX_VERSIONS = 0  # so that there is something to tidy up
    rows, embeddings = some(400)
    with Catalog.open(folder) as catalog:
        barrier.wait(60)
        for first in range(start, 400, 40):
            part = slice(first, first + 30)  # overlaps with what the others write
            catalog.upsert(rows.iloc[part], embeddings[part])
            catalog.store.optimize()
