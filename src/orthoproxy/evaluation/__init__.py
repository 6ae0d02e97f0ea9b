"""Exact retrieval metrics with class-bootstrap intervals, beside the untrained encoder."""

from orthoproxy.evaluation.bootstrap import Estimate, class_draws, estimate, resampled_means
from orthoproxy.evaluation.evaluate import (
    Evaluation,
    Scoring,
    evaluate,
    mean_scores,
    require_scorable,
    retrieval_of,
    score,
)
from orthoproxy.evaluation.metrics import cluster, normalized_mutual_information, query_metrics
from orthoproxy.evaluation.nearest import nearest
from orthoproxy.evaluation.neighbours import Retrieval, comparisons
from orthoproxy.evaluation.no_match import Matching, matching_of
from orthoproxy.evaluation.per_class import ClassScores, class_scores
from orthoproxy.evaluation.ranks import leading_ranks, positive_ranks

__all__ = [
    "ClassScores",
    "Estimate",
    "Evaluation",
    "Matching",
    "Retrieval",
    "Scoring",
    "class_draws",
    "class_scores",
    "cluster",
    "comparisons",
    "estimate",
    "evaluate",
    "leading_ranks",
    "matching_of",
    "mean_scores",
    "nearest",
    "normalized_mutual_information",
    "positive_ranks",
    "query_metrics",
    "require_scorable",
    "resampled_means",
    "retrieval_of",
    "score",
]
