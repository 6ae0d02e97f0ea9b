"""Draws the pictures of README and docs from runs: python docs/figures.py runs/icons"""

import sys
from pathlib import Path

from orthoproxy.jobs import results_of
from orthoproxy.reports import retrieval_strip
from orthoproxy.run import Run

images = Path(__file__).parent / "images"
images.mkdir(exist_ok=True)
retrieval_strip(results_of(Run(sys.argv[1]))).savefig(images / "retrieval.png", dpi=130)
