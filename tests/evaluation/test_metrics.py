"""Retrieval metrics against the brute-force reference and against pytorch-metric-learning; NMI against scikit-learn."""

import brute_force
import numpy as np
import pytest
import torch
from brute_force import retrievals
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.metrics import normalized_mutual_info_score

from orthoproxy.evaluation import Retrieval, normalized_mutual_information, query_metrics
from orthoproxy.evaluation.metrics import cluster

RECALL_AT = (1, 2, 3, 5, 10)
ONE_QUERY_PER_BLOCK = 1e-9
NAMES = [*(f"recall@{k}" for k in RECALL_AT), "map@r", "r_precision", "mrr"]


@settings(max_examples=150)
@given(retrievals(), st.sampled_from([ONE_QUERY_PER_BLOCK, 0.005, 512]))
def test_every_metric_of_every_query_is_the_definition(retrieval: Retrieval, memory_mb: float) -> None:
    metrics = query_metrics(retrieval, RECALL_AT, memory_mb)
    assert list(metrics) == NAMES
    for place, query in enumerate(retrieval.queries):
        expected = brute_force.query_metrics(retrieval, query, RECALL_AT)
        assert {name: values[place] for name, values in metrics.items()} == pytest.approx(expected, nan_ok=True)


def test_a_tie_across_position_k_never_favors_the_query() -> None:
    east, north = [1.0, 0.0], [0.0, 1.0]
    points = np.array([east, east, east, east, north])  # a query, its positive, two rivals exactly as similar, one far
    retrieval = Retrieval(points, np.array([0, 0, 1, 1, 1]), np.array([0]), np.arange(5))
    metrics = query_metrics(retrieval, recall_at=(1, 2, 3, 4))
    assert {name: float(value[0]) for name, value in metrics.items()} == {
        "recall@1": 0, "recall@2": 0, "recall@3": 1, "recall@4": 1, "map@r": 0, "r_precision": 0,
        "mrr": pytest.approx(1 / 3),
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(2))
def test_without_ties_the_values_are_those_of_pytorch_metric_learning(seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.integers(15, size=150)
    x = (generator.standard_normal((150, 12)) + 1.3 * generator.standard_normal((15, 12))[labels]).astype(np.float32)
    calculator = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r", "mean_reciprocal_rank"),
        k=149,
        knn_func=CustomKNN(CosineSimilarity()),
        device=torch.device("cpu"),
    )
    reference = calculator.get_accuracy(torch.from_numpy(x), torch.from_numpy(labels))
    everyone = np.arange(150)
    metrics = query_metrics(Retrieval(x, labels, everyone, everyone))
    names = {"recall@1": "precision_at_1", "r_precision": "r_precision", "map@r": "mean_average_precision_at_r",
             "mrr": "mean_reciprocal_rank"}  # fmt: skip
    for name, other in names.items():
        assert 0.2 < reference[other] < 0.98
        assert np.nanmean(metrics[name]) == pytest.approx(reference[other], abs=1e-6)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 8), st.integers(1, 8))
def test_nmi_is_that_of_scikit_learn(seed: int, count: int, num_classes: int, num_clusters: int) -> None:
    generator = np.random.default_rng(seed)
    labels = np.unique(generator.integers(num_classes, size=count), return_inverse=True)[1]
    clusters = np.where(generator.random(count) < 0.5, labels, generator.integers(num_clusters, size=count))
    value = normalized_mutual_information(labels, clusters)
    assert value == pytest.approx([normalized_mutual_info_score(labels, clusters)], abs=1e-9)


def test_nmi_where_nearly_all_is_one_class() -> None:
    """The two entropies add up to less than 1."""
    labels, clusters = np.zeros(400, int), np.zeros(400, int)
    labels[:3], clusters[1:5] = 1, 1
    expected = normalized_mutual_info_score(labels, clusters)
    assert 0.1 < expected < 0.9
    assert normalized_mutual_information(labels, clusters) == pytest.approx([expected], abs=1e-9)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(2, 8))
def test_weights_of_nmi_count_a_class_several_times_each_time_as_another_class(seed: int, num_classes: int) -> None:
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), generator.integers(num_classes, size=30)])
    clusters = np.where(generator.random(len(labels)) < 0.6, labels, generator.integers(5, size=len(labels)))
    weights = generator.multinomial(num_classes, np.full(num_classes, 1 / num_classes), size=3).astype(float)
    values = normalized_mutual_information(labels, clusters, weights)
    for value, counts in zip(values, weights.astype(int), strict=True):
        copies = [(c, number) for c in range(num_classes) for number in range(counts[c])]
        rows = [np.flatnonzero(labels == c) for c, _ in copies]
        repeated = np.repeat(np.arange(len(copies)), [len(r) for r in rows])
        expected = normalized_mutual_info_score(repeated, clusters[np.concatenate(rows)])
        assert value == pytest.approx(expected, abs=1e-9)


def test_clusters_are_found_and_the_same_each_time() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 25)
    x = np.eye(4)[labels] * 10 + generator.standard_normal((100, 4))
    clusters = cluster(x, clusters=4, seed=3)
    assert normalized_mutual_information(labels, clusters) == pytest.approx([1.0])
    assert np.array_equal(clusters, cluster(x, clusters=4, seed=3))
