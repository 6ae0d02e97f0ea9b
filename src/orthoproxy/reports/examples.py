"""Example queries with their nearest neighbors: drawn at random, the worst, the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from orthoproxy.evaluation import Retrieval, nearest_neighbors, rank_positives
from orthoproxy.reports.figures import COLORS, report_style
from orthoproxy.reports.html import load_thumbnail
from orthoproxy.reports.results import RunResults
from orthoproxy.reports.text import shorten

NUM_RANDOM, NUM_EXTREME, NUM_NEIGHBORS = 5, 6, 6  # random queries; worst, and best, queries; neighbors of each
CHECK_MARK = (([0.78, 0.82, 0.90], [0.16, 0.10, 0.22]),)  # strokes in the corner of a tile
CROSS_MARK = (([0.79, 0.89], [0.11, 0.21]), ([0.79, 0.89], [0.21, 0.11]))


@dataclass(frozen=True)
class Neighbor:
    """A row of the table that a query retrieved, and whether it is of the query's class."""

    row: int
    correct: bool


@dataclass(frozen=True)
class Example:
    """A query, its nearest neighbors, and the rank of its best positive (0 if it has none)."""

    row: int
    neighbors: list[Neighbor]
    rank: int


@dataclass(frozen=True)
class Examples:
    """The queries that a report shows."""

    random: list[Example]
    baseline_random: list[Example] | None
    worst: list[Example]
    best: list[Example]
    recall_at_1: float
    sampled: int


@dataclass(frozen=True)
class QueryRanks:
    """Rank of each query's best positive (ties count against it, 0 if it has none), and its margin.

    The margin is the cosine of the best positive minus that of the nearest negative.
    """

    rows: Int[np.ndarray, " Q"]
    rank: Int[np.ndarray, " Q"]
    margin: Float[np.ndarray, " Q"]


def choose_examples(results: RunResults) -> Examples | None:
    """Choose the queries to show; None if no query has a positive."""
    if results.table.empty:
        return None
    retrieval = results.retrieval(results.embeddings)
    ranks = rank_queries(retrieval)
    scored = ranks.rank > 0
    if not scored.any():
        return None
    rows, baseline = choose_random(ranks, results.table, NUM_RANDOM), results.baseline_embeddings
    return Examples(
        random=find_neighbors(retrieval, rows),
        baseline_random=None if baseline is None else find_neighbors(results.retrieval(baseline), rows),
        worst=find_neighbors(retrieval, choose_worst(ranks, results.table, NUM_EXTREME)),
        best=find_neighbors(retrieval, choose_best(ranks, results.table, NUM_EXTREME)),
        recall_at_1=float((ranks.rank[scored] == 1).mean()),
        sampled=int(scored.sum()),
    )


def rank_queries(retrieval: Retrieval, max_queries: int = 5000, seed: int = 0) -> QueryRanks:
    """Compute rank and margin of all queries, or of a random sample of `max_queries`."""
    rows = retrieval.queries
    if len(rows) > max_queries:
        rows = np.sort(np.random.default_rng(seed).choice(rows, size=max_queries, replace=False))
    blocks = rank_positives(replace(retrieval, queries=rows)) if len(retrieval.gallery) else ()
    ranks, margins = [np.empty(0, dtype=np.int64)], [np.empty(0)]
    for block in blocks:
        best_rank = torch.nn.functional.pad(block.ranks, (0, 1))[:, 0]  # 0 for a query without a positive
        ranks.append(best_rank.numpy())
        margins.append((block.best_positive - block.best_negative).numpy())
    return QueryRanks(rows if len(retrieval.gallery) else rows[:0], np.concatenate(ranks), np.concatenate(margins))


def choose_worst(ranks: QueryRanks, table: pd.DataFrame, k: int) -> list[int]:
    """Return the rows of up to k failures, the largest rank first, at most one per class."""
    order = np.lexsort((ranks.margin, -ranks.rank))
    return _one_per_class(ranks.rows[order[ranks.rank[order] > 1]], table, k)


def choose_best(ranks: QueryRanks, table: pd.DataFrame, k: int) -> list[int]:
    """Return the rows of up to k successes, the largest margin first, at most one per class."""
    order = np.argsort(-ranks.margin, kind="stable")
    return _one_per_class(ranks.rows[order[ranks.rank[order] == 1]], table, k)


def choose_random(ranks: QueryRanks, table: pd.DataFrame, k: int, seed: int = 0) -> list[int]:
    """Return the rows of up to k random queries that have a positive, at most one per class."""
    return _one_per_class(np.random.default_rng(seed).permutation(ranks.rows[ranks.rank > 0]), table, k)


def find_neighbors(retrieval: Retrieval, rows: Sequence[int], k: int = NUM_NEIGHBORS) -> list[Example]:
    """Return the k nearest neighbors of each query in `rows`."""
    if not rows:
        return []
    retrieval = replace(retrieval, queries=np.array(rows))
    found, _ = nearest_neighbors(retrieval, k)
    ranks, labels = rank_queries(retrieval, max_queries=len(rows)).rank, retrieval.labels
    return [
        Example(row, [Neighbor(other, bool(labels[other] == labels[row])) for other in others if other >= 0], rank)
        for row, others, rank in zip(rows, found.tolist(), ranks.tolist(), strict=True)
    ]


@report_style
def retrieval_strip(results: RunResults, queries: int = 5, neighbors: int = NUM_NEIGHBORS, seed: int = 0) -> Figure:
    """Draw random queries with their nearest neighbors, untrained encoder and model side by side."""
    retrieval = results.retrieval(results.embeddings)
    rows = choose_random(rank_queries(retrieval, seed=seed), results.table, queries, seed)
    blocks = {"Trained": find_neighbors(retrieval, rows, neighbors)}
    if results.baseline_embeddings is not None:
        baseline = find_neighbors(results.retrieval(results.baseline_embeddings), rows, neighbors)
        blocks = {"Untrained": baseline, **blocks}
    tile, gap, head, below = 0.72, 0.24, 0.3, 0.19  # inches
    starts = {name: tile + gap + i * (neighbors * tile + gap) for i, name in enumerate(blocks)}
    width, height = max(starts.values()) + neighbors * tile, head + max(1, len(rows)) * (tile + below)
    figure = Figure(figsize=(width, height), facecolor="white")
    for name, x in {"Query": 0.0, **starts}.items():
        figure.text((x + 0.02) / width, 1 - 0.18 / height, name, weight="bold", va="center")
    paths, labels = results.table["path"].tolist(), results.table["label"].tolist()
    for i, row in enumerate(rows):
        y = height - head - i * (tile + below) - tile
        label, position = shorten(labels[row], 13), (tile / 2 / width, (y - below / 2) / height)
        figure.text(*position, label, size=7, ha="center", va="center", parse_math=False)
        _draw_tile(figure, (0, y, tile), paths[row])
        for name, x in starts.items():
            for j, neighbor in enumerate(blocks[name][i].neighbors):
                _draw_tile(figure, (x + j * tile, y, tile), paths[neighbor.row], neighbor.correct)
    return figure


def _draw_tile(figure: Figure, place: tuple[float, float, float], path: str, correct: bool | None = None) -> None:
    """Draw an image into a square of the figure, in inches, with a mark if it is a neighbor."""
    width, height = figure.get_size_inches()
    x, y, side = place
    axes = figure.add_axes((x / width, y / height, side / width, side / height))
    axes.axis("off")
    image = load_thumbnail(path, 192) or Image.new("RGB", (8, 8), COLORS["rule"])
    axes.imshow(np.asarray(image), extent=(0.06, 0.94, 0.06, 0.94), interpolation="lanczos")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    color = COLORS["ink" if correct is None else "green" if correct else "red"]
    axes.add_patch(Rectangle((0.04, 0.04), 0.92, 0.92, fill=False, edgecolor=color, linewidth=1.6))
    if correct is not None:
        axes.add_patch(Rectangle((0.72, 0.04), 0.24, 0.24, facecolor=color, edgecolor="none"))
        for stroke in CHECK_MARK if correct else CROSS_MARK:
            axes.plot(*stroke, color="white", linewidth=1.3)


def _one_per_class(rows: Int[np.ndarray, " P"], table: pd.DataFrame, k: int) -> list[int]:
    labels = table["label"].tolist()
    chosen: dict[str, int] = {}
    for row in rows.tolist():
        if len(chosen) == k:
            break
        chosen.setdefault(labels[row], row)
    return list(chosen.values())
