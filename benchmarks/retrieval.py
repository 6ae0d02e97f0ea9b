"""Evaluation of a test set compared with faiss and pytorch-metric-learning.

python benchmarks/retrieval.py --images 20000          (60502, the size of SOP's test set, in make bench-full)
"""

from __future__ import annotations

import json
import statistics

import faiss
import numpy as np
import torch
from measure import arguments, in_fresh_process, memory_of, paired_seconds, report, times_faster
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from orthoproxy.evaluation import Retrieval, query_metrics

D = 384
RECALL_AT = (1, 10, 100, 1000)


class Candidate:
    """A way to evaluate the same embeddings: classes of 2 to 12 images, as far apart as a trained model has them."""

    def __init__(self, name: str, images: int) -> None:
        generator = np.random.default_rng(0)
        sizes = generator.integers(2, 12, size=images)
        self.labels = np.repeat(np.arange(images), sizes)[:images]
        centers = generator.standard_normal((self.labels[-1] + 1, D), dtype=np.float32)
        x = centers[self.labels] + 1.8 * generator.standard_normal((images, D), dtype=np.float32)
        self.x = x / np.linalg.norm(x, axis=1, keepdims=True)
        self.work = getattr(self, name)

    def ours(self, average_precision: bool = False) -> dict[str, float]:
        everyone = np.arange(len(self.x))
        retrieval = Retrieval(self.x, self.labels, everyone, everyone)
        metrics = query_metrics(retrieval, RECALL_AT, average_precision=average_precision)
        return {metric: float(np.nanmean(values)) for metric, values in metrics.items()}

    def full(self) -> dict[str, float]:
        return self.ours(average_precision=True)

    def faiss(self) -> np.ndarray:
        index = faiss.IndexFlatIP(D)
        index.add(self.x)
        return index.search(self.x, max(RECALL_AT) + 1)[1]

    def calculator(self) -> dict[str, float]:
        names = ("precision_at_1", "r_precision", "mean_average_precision_at_r", "mean_reciprocal_rank")
        calculator = AccuracyCalculator(include=names, k="max_bin_count", device=torch.device("cpu"))
        return calculator.get_accuracy(torch.from_numpy(self.x), torch.from_numpy(self.labels))

    def products(self) -> None:
        x = torch.from_numpy(self.x)
        for part in x.split(2048):
            part @ x.T


NAMES = {
    "ours": "orthoproxy",
    "full": "orthoproxy, with mAP and mINP",
    "faiss": "faiss IndexFlatIP, 1,001 neighbors",
    "calculator": "pytorch-metric-learning, AccuracyCalculator",
    "products": "matrix products only",
}


def main() -> None:
    options = arguments(__doc__ or "", images=20_000, runs=3)
    if options.case:
        name, images = options.case
        candidate = Candidate(name, int(images))
        print(json.dumps(memory_of(candidate.work)))
        return
    candidates = {name: Candidate(name, options.images) for name in NAMES}
    ours, theirs = candidates["ours"].ours(), candidates["calculator"].calculator()
    assert abs(ours["map@r"] - theirs["mean_average_precision_at_r"]) < 1e-4, "they must agree, or nothing is compared"
    seconds = paired_seconds({name: candidate.work for name, candidate in candidates.items()}, options.runs)
    rows = [
        {
            "what": title,
            "seconds": statistics.median(seconds[name]),
            "times orthoproxy's time": times_faster(seconds, "ours", name),
            "MiB": in_fresh_process(__file__, name, options.images)["extra_mib"],
        }
        for name, title in NAMES.items()
    ]
    report(
        "retrieval" if options.images == 20_000 else f"retrieval-{options.images}",
        f"Evaluation of {options.images:,} embeddings, D = {D}",
        list(rows[0]),
        rows,
        f"Recall@1 {100 * ours['recall@1']:.1f}, MAP@R {100 * ours['map@r']:.1f}. MiB: peak beyond the embeddings.\n"
        "faiss computes no score; the calculator computes no Recall@K beyond 1 and breaks ties by place.",
    )


if __name__ == "__main__":
    main()
