"""Compare training methods over several seeds, with intervals over seeds and classes."""

from orthoproxy.studies.plan import read_study
from orthoproxy.studies.results import read_results
from orthoproxy.studies.statistics import compare, crossed_bootstrap, holm, sign_flip_p
from orthoproxy.studies.table import summarize_methods, to_frame, to_markdown

__all__ = [
    "compare",
    "crossed_bootstrap",
    "holm",
    "read_results",
    "read_study",
    "sign_flip_p",
    "summarize_methods",
    "to_frame",
    "to_markdown",
]
