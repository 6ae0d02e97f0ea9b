"""What twice the size of the embedding wins, as `orthoproxy diagnose` expects it and as it is: runs of each size.

    python benchmarks/embedding_size.py --recipe recipes/icons.yaml --out runs/sizes --freeze 1

The recipe is trained with embeddings of 32 to 1,024 numbers and seed 0, a fifth of the training classes kept apart;
with --freeze 1 the encoder stays as it is, which takes seconds a run. On these classes, which the test classes have no
part in, the expectation of a run of D numbers is compared with what the run of 2 D numbers reaches. Runs that are in
--out are not trained again.
"""

from __future__ import annotations

from dataclasses import replace
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
        "What twice the size of the embedding wins, points of Recall@1",
        ["numbers", "recall@1 %", "expected of twice", "measured", "inside the interval", "a finding"],
        [compared(size, found[size], found[twice]) for size, twice in pairwise(SIZES)],
        f"{options.recipe}, seed 0, validation classes.",
    )


def grown(recipe: Path, folder: Path, size: int, freeze: bool, embeddings: Embeddings) -> SizeScores:
    """Train with embeddings of a size, and look at the leading directions of these."""
    config = read_config(recipe)
    config = replace(
        config,
        data=replace(config.data, validation_fraction=0.2),
        encoder=replace(config.encoder, embedding_dim=size, freeze=freeze),
        training=replace(config.training, seed=0, select_on="validation"),
    )
    run = train(config, folder, resume=True, judged=False)
    seen = score_sizes(load_diagnosis_input(run, embeddings, on="validation"))
    assert seen is not None, "no image has another of its class"
    return seen


def compared(size: int, small: SizeScores, large: SizeScores) -> dict[str, Any]:
    expected, measured = small.next_gain, large.scores[-1].value - small.scores[-1].value
    return {
        "numbers": size,
        "recall@1 %": round(100 * small.scores[-1].value, 1),
        "expected of twice": points(expected, sign=True),
        "measured": round(100 * measured, 1),
        "inside the interval": "yes" if expected.low <= measured <= expected.high else "no",
        "a finding": "yes" if expected.low > 0 and expected.value >= MIN_GAIN else "no",
    }


if __name__ == "__main__":
    main()
