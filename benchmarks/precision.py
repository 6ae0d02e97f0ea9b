"""Recall of the icons recipe trained in bfloat16 and in float32.

python benchmarks/precision.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import arguments, report

RECIPE = Path(__file__).parents[1] / "recipes" / "icons.yaml"


def main() -> None:
    options = arguments(__doc__ or "", seed=0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("32-true", "bf16-mixed"):
            out = Path(folder) / precision
            command = [sys.executable, "-m", "orthoproxy", "train", "--config", str(RECIPE), "--out", str(out)]
            settings = ["--training.precision", precision, "--training.seed", str(options.seed)]
            subprocess.run([*command, *settings], check=True)
            scores = json.loads((out / "evaluation.json").read_text())["model"]
            row: dict[str, object] = {"precision": precision}
            for name in ("recall@1", "map@r"):
                score = {bound: 100 * value for bound, value in scores[name].items()}
                row |= {name: score["value"], f"{name}, interval": f"{score['low']:.1f} to {score['high']:.1f}"}
            rows.append(row)
    report(
        "precision",
        "Icons in bfloat16 and float32",
        list(rows[0]),
        rows,
        "In percent; the intervals are over classes, at 95 %. One seed of each; seeds alone differ by up to 2.1 points "
        "(docs/studies/icons-pairs). Speed is in the table of training.",
    )


if __name__ == "__main__":
    main()
