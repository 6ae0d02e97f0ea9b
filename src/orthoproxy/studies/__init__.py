"""Compare training methods over several seeds, with intervals over seeds and classes."""

from orthoproxy.studies.page import write_page
from orthoproxy.studies.plan import Method, Study, Trial, choose_setting, read_study
from orthoproxy.studies.results import TrialResult, read_results, score_matrix
from orthoproxy.studies.statistics import Difference, compare, crossed_bootstrap, holm, mean_score, sign_flip_p
from orthoproxy.studies.table import MethodSummary, summarize_methods, to_frame, to_markdown

__all__ = [
    "Difference",
    "Method",
    "MethodSummary",
    "Study",
    "Trial",
    "TrialResult",
    "choose_setting",
    "compare",
    "crossed_bootstrap",
    "holm",
    "mean_score",
    "read_results",
    "read_study",
    "score_matrix",
    "sign_flip_p",
    "summarize_methods",
    "to_frame",
    "to_markdown",
    "write_page",
]
