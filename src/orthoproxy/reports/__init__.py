"""A run as a page that a person looks at: scores, curves, the geometry of the proxies, examples."""

from orthoproxy.reports.figures import retrieval_strip
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

__all__ = [
    "RunResults",
    "closest_pairs",
    "effective_rank",
    "orthogonality_distance",
    "render_report",
    "retrieval_strip",
    "spectrum",
    "structured_order",
    "welch_floor",
]
