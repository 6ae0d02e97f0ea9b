"""No-match thresholds calibrated on the validation images of a run, applied to its test images.

    python benchmarks/thresholds.py --run runs/icons

For each false-match rate, the threshold is calibrated on the validation images, as `orthoproxy export` does. The
table has its false-match rate there and on the larger set of test images.
"""

from __future__ import annotations

import argparse

from measure import report

from orthoproxy import RunFolder
from orthoproxy.data.table import select_split
from orthoproxy.evaluation import calibrate_no_match
from orthoproxy.runs.device import make_scoring
from orthoproxy.runs.evaluate import load_table

RATES = (0.01, 0.05, 0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="A run folder with validation and test classes.")
    run = RunFolder(parser.parse_args().run)
    table, scoring, model = load_table(run), make_scoring(run.config.evaluation, "cpu"), run.load_model()
    found = {}
    for split in ("validation", "test"):
        images = select_split(table, split)
        embeddings = model.embed(images["path"].tolist(), workers=1, progress=f"embed, {split}")
        found[split] = calibrate_no_match(embeddings, images, scoring)
        if found[split] is None:
            parser.error(f"--run: {run.folder} has no {split} images to compare")
    rows = []
    for rate in RATES:
        threshold = found["validation"].threshold(rate)
        if threshold is not None:
            shares = {
                f"among {m.gallery:,} {split} images": str(m.false_match_rate(threshold)) for split, m in found.items()
            }
            rows.append({"target false-match rate": f"{rate:.0%}", "threshold": f"{threshold:.3f}", **shares})
    if not rows:
        parser.error(f"--run: {run.folder} has too few validation images for a rate of {max(RATES):.0%}")
    report("thresholds", "No-match thresholds in a larger collection", list(rows[0]), rows, "Percent [95 % interval].")


if __name__ == "__main__":
    main()
