"""Write docs/performance.md from benchmarks/results/*.json.

python benchmarks/page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import fill
from typing import Any

from measure import RESULTS, markdown

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
INTRODUCTION = (
    "Measured on two CPU cores. `make bench` repeats most of it and `make bench-full` the rest, except the catalogs "
    "of a million images. The candidates of a table alternate in one run and speedups are medians over the rounds, "
    "so speedups carry over to other machines better than times. MiB is the peak memory of a fresh process beyond "
    "its inputs. Below each table are the date, the version of orthoproxy, the machine and the command."
)
# heading, results, what was measured
SECTIONS = (
    (
        "Loss and regularizer",
        ("objective",),
        "Forward and backward pass at batch size 180, with C classes in D dimensions. The C x C form computes P Pᵀ "
        "([Method](method.md#the-dual-form)). The matrix products are those that any exact Proxy Anchor needs.",
    ),
    (
        "A million classes",
        ("million",),
        "Proxy Anchor and Soft Orthogonality, forward and backward, and the AdamW step of all proxies (batch size "
        "180, D = 128). Parameters are the proxies, their gradient and AdamW's two moments; peak is that of the "
        "whole process.",
    ),
    (
        "Evaluation",
        (
            "retrieval",
            "retrieval-60502",
        ),
        "20,000 and 60,502 embeddings, D = 384. orthoproxy computes Recall@{1, 10, 100, 1000}, MAP@R, R-precision "
        "and MRR with ties, in float64. The others compute in float32: faiss only lists neighbors; the "
        "AccuracyCalculator computes Precision@1, MAP@R, R-precision and MRR without ties.",
    ),
    (
        "Training",
        ("training",),
        "`orthoproxy train` on JPEGs of 500 x 375 at 224 pixels; its data loading process shares the two cores. The "
        "bare loop repeats the training step on one batch in memory. Two independent processes show the speed "
        "without communication.",
    ),
    (
        "Precision",
        ("precision",),
        "Recall of the icons recipe on unseen classes, in percent with 95 % intervals over classes. One seed each; "
        "seeds differ by up to 2.1 points.",
    ),
    (
        "Image loading",
        ("loading",),
        "CPU time of one thread that turns JPEGs of 500 x 375 into crops of 224 x 224, in batches of 16.",
    ),
    (
        "Sharded proxies",
        ("processes",),
        "Loss and optimizer step with gloo on the CPU, B = 256, D = 128, W processes. Peak is that of the largest "
        "process; traffic is counted for ring collectives. [Distributed "
        "training](guide/distributed.md#memory-and-traffic-per-step) explains the predictions.",
    ),
    (
        "Exported models",
        ("export",),
        "DeiT-S with random weights at 224 pixels, all cores.",
    ),
    (
        "Catalogs",
        ("catalog", "catalog-1000000"),
        "Catalogs in a folder, D = 384: 100,000 embeddings, searched exactly in memory (FLAT), and 1,000,000, with an "
        "approximate index of 8-bit embeddings (IVF). Search times are medians of 50 single queries; NumPy is one "
        "matrix product and a partial sort.",
    ),
    (
        "Start-up time",
        ("cold",),
        "`orthoproxy search` in a fresh process, with the icons model of `make demo`. With a model in ONNX, most of "
        "the time is the import of LanceDB; with the model of a run, the import of timm and PyTorch.",
    ),
    (
        "HTTP search",
        ("serve", "serve-1000000"),
        "`orthoproxy serve` on 100,000 and 1,000,000 embeddings with default limits, k = 10, for 60 seconds. Each "
        "client sends its next query when it has the answer. MiB is the memory of the server and its decoding "
        "processes.",
    ),
)


def page() -> str:
    sections = (section(*parts) for parts in SECTIONS)
    return "\n".join([f"# Performance\n\n{fill(INTRODUCTION, 132)}\n", *sections])


def section(title: str, names: tuple[str, ...], description: str) -> str:
    """One section: what was measured, and for each result its table and where and when it was measured."""
    parts = [f"## {title}", fill(description, 132, break_on_hyphens=False)]
    for name in names:
        record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        parts += [markdown(record["columns"], record["rows"]), source(record)]
        if name == "export":
            parts.append(fill(record["notes"], 132))
    return "\n\n".join(parts) + "\n"


def source(record: dict[str, Any]) -> str:
    machine, (script, _, images) = record["environment"], record["name"].partition("-")
    command = f"python benchmarks/{script}.py" + (f" --images {images}" if images else "")
    return (
        f"{record['date']}, orthoproxy {machine['orthoproxy']}, {machine['cpu']}, {machine['cores']} cores, "
        f"PyTorch {machine['torch']}: `{command}`"
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
