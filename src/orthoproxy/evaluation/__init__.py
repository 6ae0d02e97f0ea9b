"""Exact retrieval metrics with class-bootstrap intervals, beside the untrained encoder."""

from orthoproxy.evaluation.bootstrap import Estimate, bootstrap_means, class_counts, estimate
from orthoproxy.evaluation.evaluate import (
    Evaluation,
    Scoring,
    build_retrieval,
    evaluate,
    mean_scores,
    require_scorable,
    score,
)
from orthoproxy.evaluation.metrics import cluster, normalized_mutual_information, query_metrics
from orthoproxy.evaluation.no_match import NoMatchCalibration, calibrate_no_match
from orthoproxy.evaluation.per_class import ClassScores, class_scores
from orthoproxy.evaluation.retrieval import Ranking, Retrieval, nearest_neighbors, rank_positives

__all__ = [
    "ClassScores",
    "Estimate",
    "Evaluation",
    "NoMatchCalibration",
    "Ranking",
    "Retrieval",
    "Scoring",
    "bootstrap_means",
    "build_retrieval",
    "calibrate_no_match",
    "class_counts",
    "class_scores",
    "cluster",
    "estimate",
    "evaluate",
    "mean_scores",
    "nearest_neighbors",
    "normalized_mutual_information",
    "query_metrics",
    "rank_positives",
    "require_scorable",
    "score",
]
