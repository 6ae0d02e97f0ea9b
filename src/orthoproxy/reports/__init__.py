"""Reports of training runs: scores, curves, the geometry of the proxies, example queries."""

from orthoproxy.reports.geometry import (
    closest_pairs,
    effective_rank,
    orthogonality_distance,
    spectrum,
    structured_order,
    welch_floor,
)
from orthoproxy.reports.report import render_report
from orthoproxy.reports.results import RunResults
from orthoproxy.reports.text import FEW_CLASSES

__all__ = [
    "FEW_CLASSES",
    "RunResults",
    "closest_pairs",
    "effective_rank",
    "orthogonality_distance",
    "render_report",
    "spectrum",
    "structured_order",
    "welch_floor",
]
