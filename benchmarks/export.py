"""Exported models compared with PyTorch: float32 and int8 in ONNX Runtime, eager float32 and bfloat16.

python benchmarks/export.py --runs runs/icons,runs/cars98
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loading import photograph
from measure import arguments, paired_seconds, report, times_faster

from orthoproxy.embedding.embedder import Embedder
from orthoproxy.embedding.onnx_embedder import INPUT, make_session
from orthoproxy.export.onnx_export import quantize, write_onnx
from orthoproxy.models import Encoder
from orthoproxy.runs.export import export_run

BACKBONE = "deit_small_patch16_224"
Row = dict[str, Any]
# candidate, reference
COMPARISONS = [
    ("onnx float32", "torch float32"),
    ("onnx float32", "torch bfloat16"),
    ("onnx int8", "torch float32"),
    ("onnx int8", "torch bfloat16"),
]

TITLES = {
    "onnx float32": "ONNX float32",
    "onnx int8": "ONNX int8",
    "torch float32": "PyTorch float32",
    "torch bfloat16": "PyTorch bfloat16",
}


def candidates(model: Embedder, folder: Path, batch: int) -> dict[str, Callable[[], object]]:
    """What embeds a batch of random pixels, by name."""
    pixels = torch.randint(0, 256, (batch, 3, model.image_size, model.image_size), dtype=torch.uint8)

    def eager(precision: torch.dtype | None) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", precision, enabled=precision is not None):
            return model.encoder(pixels).float().numpy()

    def exported(name: str) -> Callable[[], object]:
        session = make_session(folder / name)
        return lambda: session.run(None, {INPUT: pixels.numpy()})

    return {
        "torch float32": lambda: eager(None),
        "torch bfloat16": lambda: eager(torch.bfloat16),
        "onnx float32": exported("float32.onnx"),
        "onnx int8": exported("int8.onnx"),
    }


def speed(model: Embedder, folder: Path, batch: int, runs: int) -> list[Row]:
    seconds = paired_seconds(candidates(model, folder, batch), runs)
    milliseconds = {name: 1000 * statistics.median(taken) / batch for name, taken in seconds.items()}
    return [
        {
            "what": f"{TITLES[ours]} vs. {TITLES[theirs]}, batch {batch}",
            "ms per image": milliseconds[ours],
            "reference ms": milliseconds[theirs],
            "speedup": times_faster(seconds, ours, theirs),
        }
        for ours, theirs in COMPARISONS
    ]


def recall(run: str) -> str:
    """Export a run's model in int8, and say how its Recall@1 compares."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model.onnx"
        about = export_run(run, out, int8=True).metadata
        return f"The run {Path(run).name} ({about.encoder}) in int8: {about.checked}."


def main() -> None:
    options = arguments(__doc__ or "", rounds=20, runs="")
    torch.manual_seed(0)
    model = Embedder(Encoder(BACKBONE, embedding_dim=384))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float32.onnx"
        write_onnx(model, path)
        quantize(path, model, [photograph(number) for number in range(16)])
        for batch in (1, 32):
            rows += speed(model, Path(folder), batch, options.rounds if batch == 1 else max(3, options.rounds // 4))
    notes = "Random weights: what int8 does to the scores of a trained DeiT was not measured."
    for run in filter(None, options.runs.split(",")):
        notes += f" {recall(run)}"
    report("export", "Exported models, DeiT-S", list(rows[0]), rows, notes)


if __name__ == "__main__":
    main()
