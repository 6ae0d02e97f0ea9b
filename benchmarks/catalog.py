"""A catalog in a folder: time to index and to search, with filters too, recall, size on disk, and memory.

python benchmarks/catalog.py --images 100000
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import pyarrow as pa
from measure import MIB, arguments, in_fresh_process, memory, paired_seconds, report

from orthoproxy.catalog.catalog import Catalog, image_id
from orthoproxy.catalog.filters import parse_filter
from orthoproxy.catalog.index import fit_index, index_embeddings
from orthoproxy.catalog.lance import matches
from orthoproxy.embedding.parquet_store import META, EmbeddingMeta, Part, write_part

D = 384
K = 10
PART = 50_000
CLASSES = 1000
FILTERS = {  # by the share of the images that meet it
    "10 %": f"label in {[f'class {number}' for number in range(100, 200)]}",
    "1 %": f"label in {[f'class {number}' for number in range(10)]}",
    "0.2 %": "label == 'class 7' or label == 'class 8'",
    "0.01 %": "group == 'rare'",
}


def collection(images: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Unit rows, a thousand classes, two thirds of the images in groups; two images of a class have a cosine of 0.5."""
    generator = np.random.default_rng(0)
    centers = generator.standard_normal((CLASSES, D), dtype=np.float32)
    embeddings = np.empty((images, D), np.float32)
    for first in range(0, images, PART):
        part = embeddings[first : first + PART]
        part[:] = centers[np.arange(first, first + len(part)) % CLASSES]
        part += generator.standard_normal(part.shape, dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    numbers = range(images)
    rows = pd.DataFrame({"path": [f"class {number % CLASSES}/{number}.jpg" for number in numbers]})
    rows["id"] = rows["path"].map(image_id)
    rows["label"] = [f"class {number % CLASSES}" for number in numbers]
    rows["group"] = [f"camera {number % 20}" if number % 3 else "" for number in numbers]
    rows.loc[rows.index % 10_000 == 5000, "group"] = "rare"
    rows["content"] = [f"{number:032x}" for number in numbers]
    return rows, embeddings


def write_parts(folder: Path, rows: pd.DataFrame, embeddings: np.ndarray) -> None:
    """Write what `orthoproxy embed` would."""
    starts = range(0, len(rows), PART)
    parts = [
        Part(file=f"part-{number:05}.parquet", images=len(rows[first : first + PART]), digest=str(number))
        for number, first in enumerate(starts)
    ]
    described = {"model": "0" * 16, "model_path": "", "dim": D, "root": "/images", "images": len(rows)}
    meta = EmbeddingMeta(format_version=1, part_size=PART, parts=tuple(parts), **described)
    folder.mkdir()
    for first, part in zip(starts, parts, strict=True):
        write_part(folder, meta, part, rows[first : first + PART].assign(reason=""), embeddings[first : first + PART])
    (folder / META).write_text(meta.model_dump_json())


def search_alone(folder: str, queries: str) -> dict[str, float]:
    """Open a catalog and search in it, as a process that does nothing else: seconds to the first answer, and MiB."""
    start = time.perf_counter()
    with Catalog.open(folder) as catalog:
        rows = np.load(queries)
        catalog.search(rows[:1], K)
        first = time.perf_counter() - start
        for query in rows:
            catalog.search(query[None], K)
        return {"first": first, "mib": memory(os.getpid())}


def recall(catalog: Catalog, ids: np.ndarray, embeddings: np.ndarray, queries: np.ndarray, where: str | None) -> float:
    """Recall@10 against exact search in these rows; a missing result is a miss."""
    exact = np.argsort(-(queries @ embeddings.T), axis=1)[:, :K]
    found = catalog.search(queries, K, where)
    shares = [
        len({hit.id for hit in hits} & set(ids[near])) / len(near) for hits, near in zip(found, exact, strict=True)
    ]
    return statistics.mean(shares)


def main() -> None:
    options = arguments(__doc__ or "", images=100_000, queries=50)
    if options.case:
        print(json.dumps(search_alone(*options.case)))
        return
    rows, embeddings = collection(options.images)
    chosen = np.random.default_rng(1).choice(options.images, options.queries, replace=False)
    queries, ids = embeddings[chosen], rows["id"].to_numpy()
    with tempfile.TemporaryDirectory() as temporary:
        parts, folder = Path(temporary) / "parts", Path(temporary) / "catalog"
        write_parts(parts, rows, embeddings)
        start = time.perf_counter()
        with Catalog.create(str(folder), D, "0" * 16, "", "/images") as catalog:
            index_embeddings(catalog, parts)
            fit_index(catalog)
        indexing = time.perf_counter() - start
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        np.save(Path(temporary) / "queries.npy", queries)
        alone = in_fresh_process(__file__, folder, Path(temporary) / "queries.npy")
        with Catalog.open(str(folder)) as catalog:
            start = time.perf_counter()
            read = sum(len(page) for page in catalog.iterate_rows(["id", "label"]))
            reading = time.perf_counter() - start
            assert read == len(rows)
            texts = pa.Table.from_pandas(rows)
            kept = {name: matches(parse_filter(where), texts) for name, where in FILTERS.items()}
            recalls = {"": recall(catalog, ids, embeddings, queries, None)}
            for name, where in FILTERS.items():
                recalls[name] = recall(catalog, ids[kept[name]], embeddings[kept[name]], queries, where)
            seconds = time_searches(catalog, embeddings, queries)
            kind = catalog.store.index_type
    numpy = statistics.median(seconds["NumPy, one product"])
    results = [
        {"what": "index, from Parquet files", "seconds": indexing, "value": f"{len(rows) / indexing:,.0f} images/s"},
        {"what": "size on disk", "value": f"{size / embeddings.nbytes:.2f}x the raw embeddings"},
        {"what": "read all ids and labels", "seconds": reading},
        {"what": "open, and answer the first search", "seconds": alone["first"]},
        {
            "what": "memory of a searching process",
            "value": f"{alone['mib']:,.0f} MiB, raw {embeddings.nbytes / MIB:,.0f}",
        },
    ]
    for name, times in seconds.items():
        median = statistics.median(times)
        value = f"{median / numpy:.1f} times NumPy"
        share = name.removeprefix("search, filter that ").removesuffix(" of the images meet")
        if name == f"search, {kind}" or share in recalls:
            value += f", recall@10 {recalls.get(share, recalls['']):.3f}"
        results.append({"what": name, "seconds": median, "value": value})
    report(
        "catalog" if options.images == 100_000 else f"catalog-{options.images}",
        f"Catalog of {options.images:,} embeddings, D = {D}",
        ["what", "seconds", "value"],
        results,
        f"Seconds of a search: the median of {options.queries}, one query at a time.",
    )


def time_searches(catalog: Catalog, embeddings: np.ndarray, queries: np.ndarray) -> dict[str, list[float]]:
    """Time searches with one query at a time, each kind in turn."""
    faiss.omp_set_num_threads(1)  # for one query, two threads take twice as long on two cores
    flat = faiss.IndexFlatIP(D)
    flat.add(embeddings)
    turn = iter(range(10**9))

    def query() -> np.ndarray:
        return queries[next(turn) % len(queries)]

    def numpy() -> object:
        similarity = embeddings @ query()
        best = np.argpartition(-similarity, K)[:K]
        return best[np.argsort(-similarity[best])]

    candidates: dict[str, Callable[[], object]] = {
        f"search, {catalog.store.index_type}": lambda: catalog.search(query()[None], K),
        **{
            f"search, filter that {name} of the images meet": partial(
                lambda where: catalog.search(query()[None], K, where), where
            )
            for name, where in FILTERS.items()
        },
        "search, one result per group": lambda: catalog.search(query()[None], K, diverse=True),
        "NumPy, one product": numpy,
        "faiss, IndexFlatIP": lambda: flat.search(query()[None], K),
    }
    return paired_seconds(candidates, len(queries))


if __name__ == "__main__":
    main()
