"""Gain of twice the embedding dimension, as `orthoproxy diagnose` expects it and as measured.

    python benchmarks/embedding_size.py --recipe recipes/icons.yaml --out runs/sizes --freeze 1

The recipe is trained with 32 to 1,024 dimensions and seed 0 and evaluated on a fifth of the training classes; with
--freeze 1 the encoder stays fixed, which takes seconds per run. Runs that exist in --out are not trained again.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from measure import arguments, report

from orthoproxy import read_config, train
from orthoproxy.diagnosis.embedding_size import MIN_GAIN, SizeScores, score_sizes
from orthoproxy.reports.text import points
from orthoproxy.runs.diagnose import EmbeddingCache, load_diagnosis_input

SIZES = (32, 64, 128, 256, 512, 1024)


def main() -> None:
    options = arguments(__doc__ or "", recipe="recipes/icons.yaml", out="runs/sizes", freeze=1)
    embeddings = EmbeddingCache(workers=1)  # the untrained encoder's are of all runs
    recipe, out, freeze = Path(options.recipe), Path(options.out), bool(options.freeze)
    found = {size: grown(recipe, out / str(size), size, freeze, embeddings) for size in SIZES}
    report(
        f"embedding_size-{recipe.stem}{'-frozen' if options.freeze else ''}",
        "Gain of twice the embedding dimension, points of Recall@1",
        ["dimension", "recall@1 %", "expected gain", "measured gain", "in the interval", "a finding"],
        [compared(size, found[size], found[twice]) for size, twice in pairwise(SIZES)],
        f"{options.recipe}, seed 0, validation classes.",
    )


def grown(recipe: Path, folder: Path, size: int, freeze: bool, embeddings: EmbeddingCache) -> SizeScores:
    """Train with embeddings of a size, and look at the leading directions of these."""
    overrides = {
        "data.validation_fraction": 0.2,
        "encoder.embedding_dim": size,
        "encoder.freeze": freeze,
        "training.seed": 0,
        "checkpoint_selection.split": "validation",
    }
    run = train(read_config(recipe).with_overrides(overrides), folder, resume=True, evaluate=False)
    seen = score_sizes(load_diagnosis_input(run, embeddings, "validation"))
    assert seen is not None, "no image has another of its class"
    return seen


def compared(size: int, small: SizeScores, large: SizeScores) -> dict[str, Any]:
    expected, measured = small.next_gain, large.scores[-1].value - small.scores[-1].value
    return {
        "dimension": size,
        "recall@1 %": round(100 * small.scores[-1].value, 1),
        "expected gain": points(expected, sign=True),
        "measured gain": round(100 * measured, 1),
        "in the interval": "yes" if expected.low <= measured <= expected.high else "no",
        "a finding": "yes" if expected.low > 0 and expected.value >= MIN_GAIN else "no",
    }


if __name__ == "__main__":
    main()
