"""Exact retrieval metrics with class-bootstrap intervals, beside the untrained encoder."""

from orthoproxy.evaluation.bootstrap import Estimate
from orthoproxy.evaluation.evaluate import Evaluation, Scoring, evaluate, score
from orthoproxy.evaluation.metrics import query_metrics
from orthoproxy.evaluation.no_match import NoMatchCalibration, calibrate_no_match
from orthoproxy.evaluation.query_expansion import expand_queries
from orthoproxy.evaluation.reranking import rerank
from orthoproxy.evaluation.retrieval import Retrieval, nearest_neighbors
from orthoproxy.evaluation.voting import vote

__all__ = [
    "Estimate",
    "Evaluation",
    "NoMatchCalibration",
    "Retrieval",
    "Scoring",
    "calibrate_no_match",
    "evaluate",
    "expand_queries",
    "nearest_neighbors",
    "query_metrics",
    "rerank",
    "score",
    "vote",
]
