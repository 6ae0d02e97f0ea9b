"""Indexing and searching a catalog: time, size on disk, recall.

python benchmarks/catalog.py --images 100000
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from measure import MIB, arguments, in_fresh_process, memory, paired_seconds, report

from orthoproxy.catalog.catalog import Catalog, image_id
from orthoproxy.catalog.index import fit_index

D = 384
K = 10


def collection(images: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Unit rows, a thousand classes, two thirds of the images in groups."""
    generator = np.random.default_rng(0)
    centers = generator.standard_normal((1000, D), dtype=np.float32)
    x = centers[np.arange(images) % 1000] + 2 * generator.standard_normal((images, D), dtype=np.float32)
    paths = [f"class {number % 1000}/{number}.jpg" for number in range(images)]
    rows = pd.DataFrame(
        {
            "id": [image_id(path) for path in paths],
            "path": paths,
            "label": [f"class {number % 1000}" for number in range(images)],
            "group": [f"camera {number % 20}" if number % 3 else "" for number in range(images)],
            "content": [f"{number:032x}" for number in range(images)],
        }
    )
    return rows, x / np.linalg.norm(x, axis=1, keepdims=True)


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def search_alone(folder: str, queries: np.ndarray) -> dict[str, float]:
    """Open a catalog and search in it, as a process that does nothing else; MiB of what that holds in the end."""
    with Catalog.open(folder) as catalog:
        for query in queries:
            catalog.search(query[None], K)
        return {"mib": memory(os.getpid())}


def main() -> None:
    options = arguments(__doc__ or "", images=100_000, queries=50)
    if options.case:
        folder, queries = options.case
        print(json.dumps(search_alone(folder, np.load(queries))))
        return
    rows, embeddings = collection(options.images)
    chosen = np.random.default_rng(1).choice(options.images, options.queries, replace=False)
    queries = embeddings[chosen]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "catalog"
        start = time.perf_counter()
        with Catalog.create(str(folder), D, "0" * 16, "") as catalog:
            for first in range(0, len(rows), 2000):
                catalog.upsert(rows.iloc[first : first + 2000], embeddings[first : first + 2000])
            fit_index(catalog)
        indexing = time.perf_counter() - start
        size = on_disk(folder)
        start = time.perf_counter()
        catalog = Catalog.open(str(folder))
        opening = time.perf_counter() - start
        found = catalog.search(queries, K)
        exact = np.argsort(-(queries @ embeddings.T), axis=1)[:, :K]
        ids = rows["id"].to_numpy()
        recall = statistics.mean(
            len({hit.id for hit in hits} & set(ids[near])) / K for hits, near in zip(found, exact, strict=True)
        )
        turn = iter(range(10**9))

        def ours() -> object:
            return catalog.search(queries[next(turn) % len(queries)][None], K)

        def condition() -> object:
            return catalog.search(queries[next(turn) % len(queries)][None], K, where='label != "class 7"')

        def diverse() -> object:
            return catalog.search(queries[next(turn) % len(queries)][None], K, diverse=True)

        def numpy() -> object:
            similarity = queries[next(turn) % len(queries)] @ embeddings.T
            best = np.argpartition(-similarity, K)[:K]
            return best[np.argsort(-similarity[best])]

        seconds = paired_seconds(
            {"search": ours, "condition": condition, "diverse": diverse, "numpy": numpy}, options.queries
        )
        kind = catalog.index
        catalog.close()
        np.save(Path(temporary) / "queries.npy", queries)
        held = in_fresh_process(__file__, folder, Path(temporary) / "queries.npy")["mib"]
    raw = embeddings.nbytes
    rows_out = [
        {
            "what": "index, from given embeddings",
            "seconds": indexing,
            "value": f"{len(rows) / indexing:,.0f} images per second",
        },
        {"what": "size on disk", "value": f"{size / raw:.2f}x the raw embeddings"},
        {"what": "open", "seconds": opening},
        {"what": "memory of a searching process", "value": f"{held:,.0f} MiB, raw {raw / MIB:,.0f}"},
        {
            "what": f"search, {kind}, warm",
            "seconds": statistics.median(seconds["search"]),
            "value": f"recall@10 {recall:.3f}",
        },
        {"what": "search with a filter", "seconds": statistics.median(seconds["condition"])},
        {"what": "search, one result per group", "seconds": statistics.median(seconds["diverse"])},
        {"what": "numpy", "seconds": statistics.median(seconds["numpy"])},
    ]
    report(
        "catalog" if options.images == 100_000 else f"catalog-{options.images}",
        f"Catalog of {options.images:,} embeddings, D = {D}",
        ["what", "seconds", "value"],
        rows_out,
        f"Seconds of a search: the median of {options.queries}, one query at a time.",
    )


if __name__ == "__main__":
    main()
