"""What augmentation, query expansion and re-ranking are worth on the test images of a run, and their CPU time.

python benchmarks/search_time.py runs/icons
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from measure import markdown

from orthoproxy.data.table import evaluation_images
from orthoproxy.embedding.augmentation import augmented
from orthoproxy.evaluation import Scoring, score
from orthoproxy.runs.evaluate import load_table
from orthoproxy.runs.run_folder import RunFolder

METRICS = ("recall@1", "map@r", "map")


def cpu_time(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return work(), 1000 * (time.process_time() - start)


def main() -> None:
    run = RunFolder(Path(sys.argv[1]))
    table, model = evaluation_images(load_table(run), "test"), run.load_model(with_proxies=False)
    paths = table["path"].tolist()
    embeddings, embedding = cpu_time(partial(model.embed, paths))
    views, embedding_views = cpu_time(partial(augmented(model).embed, paths))
    plain, ranking = cpu_time(partial(score, embeddings, None, table, Scoring(map=True)))
    rows = [{"lever": "none", **{name: str(plain.model[name]) for name in METRICS}, "ms": "0"}]
    for n, reranked, more in [(0, False, views), *((n, False, None) for n in (1, 2, 5, 10)), (0, True, None)]:
        scoring = Scoring(map=True, expand=n, rerank=reranked)
        found, cost = cpu_time(partial(score, embeddings, None, table, scoring, augmented=more))
        ((lever, scores),) = found.search_time.items()
        milliseconds = (cost - ranking) / plain.queries if more is None else (embedding_views - embedding) / len(paths)
        change = {name: str(scores.difference[name]) for name in METRICS}
        rows.append({"lever": f"--{lever}", **change, "ms": f"{milliseconds:.1f}"})
    print(f"{plain.queries} queries of {plain.classes} classes; an embedding takes {embedding / len(paths):.1f} ms")
    print(markdown(list(rows[0]), rows))


if __name__ == "__main__":
    main()
