"""A whole evaluation: roles, groups, queries without positive, the paired difference, and its JSON."""

import json
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from brute_force import query_metrics, random_embeddings, random_table
from errors import error_of
from hypothesis import given, settings
from hypothesis import strategies as st
from many import in_processes

from orthoproxy.data import folder_table, make_table
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.evaluation import Evaluation, Scoring, evaluate, score
from orthoproxy.evaluation.bootstrap import bootstrap_means
from orthoproxy.evaluation.evaluate import build_retrieval, mean_scores, require_scorable
from orthoproxy.evaluation.per_class import class_scores
from orthoproxy.evaluation.retrieval import Exclude
from orthoproxy.models import Encoder


@pytest.mark.parametrize(("groups", "asked"), [
    (False, "own_class_in_group"), (True, "none"), (True, "group"), (True, "own_class_in_group"),
])  # fmt: skip
def test_scores_are_the_mean_over_queries_with_a_positive_by_the_definition(groups: bool, asked: Exclude) -> None:
    table, rule = random_table(0, groups), asked if groups else "none"
    x = random_embeddings(table, 1)
    result = score(x, None, table, Scoring(recall_at=(1, 5), map=True, exclude=asked))
    assert (result.exclude, result.exclude_none is None) == (rule, rule == "none")
    for scores in (result, result.exclude_none or result):
        retrieval = build_retrieval(x, table, scores.exclude)
        queries = [row for row in range(90) if table.role[row] in ("query", "both")]
        every = [query_metrics(retrieval, query, (1, 5)) for query in queries]
        scored = [metrics for metrics in every if not np.isnan(metrics["mrr"])]
        assert scores.queries == len(scored)
        assert scores.queries_without_positive == len(every) - len(scored) >= 2
        assert scores.classes == len({table.label[q] for q, m in zip(queries, every, strict=True) if m in scored})
        for name, value in scores.model.items():
            assert value.value == pytest.approx(np.mean([metrics[name] for metrics in scored]))
            assert 0 <= value.low <= value.value <= value.high <= 1


@pytest.mark.parametrize("groups", [False, True])
def test_a_category_has_the_scores_of_its_queries_with_an_interval_over_its_classes(groups: bool) -> None:
    table = random_table(0, groups)
    table = table.assign(category=[f"kind {len(name) + ord(name[-1]) % 3}" for name in table.label])
    x, y = random_embeddings(table, 1), random_embeddings(table, 2, spread=3)
    result = score(x, y, table, Scoring(recall_at=(1, 5), bootstrap_samples=200))
    assert Evaluation.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False))) == result
    assert result.baseline == score(y, None, table, Scoring(recall_at=(1, 5), bootstrap_samples=200)).model
    assert list(result.model)[-1] == "category_recall@1" and result.by_category is not None
    assert all(x["category_recall@1"].value >= x["recall@1"].value for x in (result.model, result.baseline))
    assert list(result.by_category) == sorted(set(table.category[table.label.str.startswith("class")]))
    retrieval = build_retrieval(x, table, "group" if groups else "none")
    every = {query: query_metrics(retrieval, query, (1, 5)) for query in retrieval.queries}
    for name, scores in result.by_category.items():
        queries = [q for q, metrics in every.items() if table.category[q] == name and not np.isnan(metrics["mrr"])]
        classes = retrieval.labels[queries]
        assert (scores.queries, scores.classes) == (len(queries), len(set(classes)))
        for metric, found in scores.model.items():
            values = np.array([every[query][metric] for query in queries])
            low, high = np.percentile(bootstrap_means(values, classes, 200), [2.5, 97.5])
            expected = values.mean(), min(low, values.mean()), max(high, values.mean())
            assert (found.value, found.low, found.high) == pytest.approx(expected)
            difference = scores.difference[metric].value
            assert difference == pytest.approx(found.value - scores.baseline[metric].value)
    assert sum(x.queries for x in result.by_category.values()) == result.queries
    assert score(x, None, random_table(0), Scoring(bootstrap_samples=2)).by_category is None


@pytest.mark.parametrize("exclude", get_args(Exclude))
def test_the_mean_of_class_scores_over_queries_is_the_score(exclude: Exclude) -> None:
    table, scoring = random_table(0, groups=True), Scoring(recall_at=(1, 3), map=True, exclude=exclude)
    x = random_embeddings(table, 1)
    scores, means = class_scores(x, table, scoring), mean_scores(x, table, scoring)
    assert scores.index.is_monotonic_increasing
    assert not {"single one", "single two"} & set(scores.index)  # which have nothing to find
    assert set(scores) == {"queries", *means}
    for name, mean in means.items():
        assert np.average(scores[name], weights=scores["queries"]) == pytest.approx(mean, abs=1e-12)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.sampled_from(get_args(Exclude)), st.booleans())
def test_whether_some_query_has_a_positive_is_known_from_the_table(seed, count, exclude, duplicates) -> None:
    generator = np.random.default_rng(seed)
    role = generator.choice(["query", "gallery", "both"], count)
    label, group = generator.choice(["a", "b"], count), generator.choice(["", "x", "y"], count)
    label[(role == "gallery") & (generator.random(count) < 0.3)] = ""  # distractors
    table = make_table(list("123456"[:count]), label.tolist(), role=role.tolist(), group=group.tolist())
    table = table.assign(copies=generator.integers(-1, 2, count))
    retrieval = build_retrieval(np.eye(count), table, exclude, duplicates)
    scorable = any(query_metrics(retrieval, query, (1,))["mrr"] > 0 for query in retrieval.queries)
    scoring = Scoring(exclude=exclude, exclude_duplicates=duplicates, bootstrap_samples=2)
    if scorable and table["label"][table["role"] != "query"].nunique() > 1:
        require_scorable(table, scoring)
        return
    fields = {error_of(function, *arguments).field for function, arguments in (
        (require_scorable, (table, scoring)), (score, (np.eye(count), None, table, scoring)),
    )}  # fmt: skip
    assert len(fields) == 1 and fields < {"table", "exclude", "exclude_duplicates"}


@pytest.mark.usefixtures("unchecked")
def test_another_number_of_embeddings_than_images_is_an_error() -> None:
    table = make_table(["1", "2"], ["a", "a"])
    for field, model, baseline in (("model", np.eye(3), None), ("baseline", np.eye(2), np.eye(3))):
        assert error_of(score, model, baseline, table, Scoring()).field == field


def test_a_share_of_the_queries_is_scored_as_all_of_them() -> None:
    """In two processes, and in four of which one has no query."""
    table = random_table(0)
    few = make_table(["1", "2", "3"], ["a", "a", "b"], category="kind")
    for count, some in ((2, table), (4, few)):
        x, scoring = random_embeddings(some, 1), Scoring(recall_at=(1, 3), bootstrap_samples=20)
        expected = score(x, None, some, scoring).model
        assert score(x, None, some, replace(scoring, shared=True)).model == expected
        in_each = in_processes(count, score, x, None, some, replace(scoring, shared=True))
        assert [found.model for found in in_each] == [expected] * count


def test_evaluate_finds_the_untrained_encoder_beside_the_model(tmp_path, image_folder, tiny_encoder) -> None:
    table, scoring = folder_table(image_folder), Scoring(bootstrap_samples=20)
    trained, untrained = Embedder(tiny_encoder), Embedder(Encoder(tiny_encoder.name, image_size=32))
    trained.save(tmp_path / "model")
    assert evaluate(Embedder.load(tmp_path), table, scoring=scoring).baseline is None
    untrained.save(tmp_path / "baseline")
    expected = score(*(model.embed(list(table.path)) for model in (trained, untrained)), table, scoring)
    for found in (evaluate(Embedder.load(tmp_path), table, scoring=scoring),
                  evaluate(trained, table, baseline=untrained, scoring=scoring)):  # fmt: skip
        assert replace(found, seconds=0) == replace(expected, seconds=0)
