"""Retrieval metrics against the brute-force reference and against pytorch-metric-learning."""

import brute_force
import numpy as np
import pytest
import torch
from brute_force import retrievals
from errors import error_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN

from orthoproxy.data import BatchSampler, TrainingImages, evaluation_transform
from orthoproxy.evaluation import Retrieval, query_metrics

RECALL_AT = (1, 2, 3, 5, 10)
ONE_QUERY_PER_BLOCK = 1e-9
NAMES = [*(f"recall@{k}" for k in RECALL_AT), "map@r", "r_precision", "mrr"]


@settings(max_examples=150)
@given(retrievals(), st.sampled_from([ONE_QUERY_PER_BLOCK, 0.005, 512]))
def test_every_metric_of_every_query_is_the_definition(retrieval: Retrieval, memory_mb: float) -> None:
    metrics = query_metrics(retrieval, RECALL_AT, memory_mb, average_precision=True)
    fast = query_metrics(retrieval, RECALL_AT, memory_mb)
    assert list(fast) == NAMES + ["category_recall@1"] * (retrieval.categories is not None)
    assert list(metrics) == [*fast, "map", "minp"]
    for name, values in fast.items():
        assert np.array_equal(values, metrics[name], equal_nan=True)
    for place, query in enumerate(retrieval.queries):
        expected = brute_force.query_metrics(retrieval, query, RECALL_AT)
        assert {name: values[place] for name, values in metrics.items()} == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("seed", range(2))
def test_without_ties_the_values_are_those_of_pytorch_metric_learning(seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.integers(15, size=150)
    x = (generator.standard_normal((150, 12)) + 1.3 * generator.standard_normal((15, 12))[labels]).astype(np.float32)
    names = {"recall@1": "precision_at_1", "r_precision": "r_precision", "map@r": "mean_average_precision_at_r",
             "mrr": "mean_reciprocal_rank"}  # fmt: skip
    knn = CustomKNN(CosineSimilarity())
    calculator = AccuracyCalculator([*names.values()], k=149, knn_func=knn, device=torch.device("cpu"))
    reference = calculator.get_accuracy(torch.from_numpy(x), torch.from_numpy(labels))
    everyone = np.arange(150)
    metrics = query_metrics(Retrieval(x, labels, everyone, everyone))
    for name, other in names.items():
        assert 0.2 < reference[other] < 0.98
        assert np.nanmean(metrics[name]) == pytest.approx(reference[other], abs=1e-6)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.uint64])
def test_labels_may_be_of_any_integer_type(dtype: type) -> None:
    generator, everyone = np.random.default_rng(0), np.arange(40)
    points, labels = generator.standard_normal((40, 4)), everyone % 5
    expected = query_metrics(Retrieval(points, labels, everyone, everyone))
    found = query_metrics(Retrieval(points, labels.astype(dtype), everyone, everyone))
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", [bool, np.float32])
def test_labels_of_no_integer_type_are_an_error(dtype: type) -> None:
    rows, labels = np.array([0, 1, 1]), np.array([0, 1, 1.5]).astype(dtype)
    assert error_of(Retrieval, np.eye(3), labels, rows, rows).field == "labels"
    assert error_of(BatchSampler, labels, 2).field == "labels"
    assert error_of(TrainingImages, ["1.png", "2.png", "3.png"], labels, evaluation_transform(32)).field == "labels"
