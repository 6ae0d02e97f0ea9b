"""Draws the pictures of README and docs from runs: python docs/figures.py runs/icons"""

import sys
from pathlib import Path

from orthoproxy.reports import retrieval_strip
from orthoproxy.run import results_of
from orthoproxy.run_folder import Run

images = Path(__file__).parent / "images"
images.mkdir(exist_ok=True)
retrieval_strip(results_of(Run(sys.argv[1]))).savefig(images / "retrieval.png", dpi=130)
