"""Several runs compared, with intervals over seeds and classes."""

from orthoproxy.studies.comparison import Row, judged_results, matrix_of, rows_of
from orthoproxy.studies.page import write_page
from orthoproxy.studies.plan import Cell, Method, Study, chosen_setting, score_of
from orthoproxy.studies.statistics import (
    Difference,
    compare,
    crossed_bootstrap,
    holm,
    mean_score,
    scores_of_seeds,
    sign_flip_p,
)
from orthoproxy.studies.study_file import read_study
from orthoproxy.studies.table import as_csv, as_latex, as_markdown, frame_of

__all__ = [
    "Cell",
    "Difference",
    "Method",
    "Row",
    "Study",
    "as_csv",
    "as_latex",
    "as_markdown",
    "chosen_setting",
    "compare",
    "crossed_bootstrap",
    "frame_of",
    "holm",
    "judged_results",
    "matrix_of",
    "mean_score",
    "read_study",
    "rows_of",
    "score_of",
    "scores_of_seeds",
    "sign_flip_p",
    "write_page",
]
