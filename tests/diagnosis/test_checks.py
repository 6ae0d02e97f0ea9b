"""Each finding where it must be, and none where it must not."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from constructed import CLASSES, around, centers, healthy, relabel, split

from orthoproxy.diagnosis import diagnose
from orthoproxy.diagnosis.confusions import check_confusions
from orthoproxy.diagnosis.diagnose import summary_lines
from orthoproxy.diagnosis.findings import Check
from orthoproxy.diagnosis.label_errors import check_labels, corrupt_labels
from orthoproxy.diagnosis.overfitting import check_overfitting
from orthoproxy.diagnosis.proxy_collapse import check_proxies


def severity(check: Check) -> float:
    assert check.finding is not None, check
    value = check.finding.severity
    assert value.low <= value.value <= value.high
    assert check.status == "found" and check.evidence and check.finding.advice
    return value.value


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    found = diagnose(healthy())
    assert found.findings == []
    assert {check.status for check in found.checks} == {"nothing found"}
    assert found.num_unseen_classes == 40


def test_overfitting_is_the_gap_that_training_opened() -> None:
    model = replace(healthy(), unseen=split("new", centers(2), noise=2.5, baseline_noise=0.5, seed=20))
    check = check_overfitting(model)
    gap = {name: value["value"] for name, value in check.measured.items() if name != "classes"}
    baseline = gap["baseline_training"] - gap["baseline_unseen"]
    assert severity(check) == pytest.approx(gap["training"] - gap["unseen"] - baseline)
    assert severity(check) > 0.3


def test_classes_that_are_hard_for_the_untrained_encoder_too_are_no_overfitting() -> None:
    model = replace(healthy(), unseen=split("new", centers(2), noise=1.6, baseline_noise=1.6, seed=20))
    check = check_overfitting(model)
    assert check.measured["training"]["value"] - check.measured["unseen"]["value"] > 0.2
    assert check.finding is not None  # the untrained encoder sees the training classes with noise 0.5
    equal = replace(model, training=split("seen", centers(1), noise=0.3, baseline_noise=0.3, seed=10))
    assert check_overfitting(equal).finding is None


def test_collapsed_proxies() -> None:
    flat = around(centers(1)[:, :2], np.arange(CLASSES), dim=64, noise=0.0, seed=0)
    check = check_proxies(replace(healthy(), proxies=flat))
    assert check.measured["effective_rank"] < 2.1 < 0.5 * check.measured["random_rank"]
    assert severity(check) > 0.5  # the images are where they were, and mostly nearest to another proxy


def test_few_directions_that_do_no_harm_are_no_finding() -> None:
    check = check_proxies(healthy(latent=12, noise=0.05))
    assert check.measured["effective_rank"] < 0.5 * check.measured["random_rank"]
    assert check.measured["astray"]["value"] == 0
    assert check.finding is None


def test_close_proxies_are_found_where_their_images_mix() -> None:
    points = centers(1, latent=48)
    points[1::2] = points[::2] + 0.35 * points[1::2]  # pairs of classes close together
    model = replace(healthy(), proxies=around(points, np.arange(CLASSES), 64, 0.0, 0))
    check = check_proxies(replace(model, training=split("seen", points, noise=0.9, baseline_noise=0.5, seed=10)))
    assert 0.01 <= severity(check) == check.measured["astray_close"]["value"] <= check.measured["astray"]["value"]
    assert check.measured["close_classes"] == check.measured["compared"] == CLASSES
    first, second = (int(check.measured["closest"][0][side].split()[1]) for side in ("first", "second"))
    assert first // 2 == second // 2
    apart = split("seen", points, noise=0.01, baseline_noise=0.5, seed=10)
    assert check_proxies(replace(model, training=apart)).finding is None  # close, but nothing mixes


def test_two_names_for_one_class_are_confused() -> None:
    points = centers(2)
    points[7] = points[3]
    check = check_confusions(replace(healthy(), unseen=split("new", points, 0.3, 0.5, 20)))
    (pair,) = check.measured["pairs"]
    assert (pair["first"], pair["second"], pair["queries"]) == ("new 003", "new 007", 16)
    assert severity(check) == pytest.approx((pair["to_first"] + pair["to_second"]) / (CLASSES * 8))
    assert check.finding is not None
    (thumbnails,) = check.finding.thumbnails
    assert [shown.label for shown in thumbnails] == ["new 003", "new 007", "new 007", "new 003"]


def test_errors_that_are_spread_over_all_classes_are_no_confusion() -> None:
    generator = np.random.default_rng(0)
    images = split("new", centers(2), 0.3, 0.5, 20)
    rows = generator.choice(len(images.labels), 60, replace=False)
    embeddings = images.embeddings.copy()
    embeddings[rows] = embeddings[generator.permutation(rows)]
    check = check_confusions(replace(healthy(), unseen=replace(images, embeddings=embeddings)))
    assert check.measured["wrong"]["value"] > 0.1
    assert check.finding is None


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_five_percent_label_errors_of_three_thousand_are_found(seed: int) -> None:
    training = split("seen", centers(1, classes=375, latent=32), 0.3, 0.8, 10)
    labels, rows = corrupt_labels(training.labels, 0.05, seed)
    check = check_labels(replace(healthy(), training=relabel(training, labels)))
    assert 0.03 < severity(check) < 0.07
    listed = {suspect["path"]: suspect["most_similar"] for suspect in check.measured["suspects"]}
    truth = dict(zip(training.table["path"], training.table["label"], strict=True))
    corrupted = set(training.table["path"][rows])
    precision, recall = len(listed.keys() & corrupted) / len(listed), len(listed.keys() & corrupted) / len(corrupted)
    assert precision > 0.95 and recall > 0.5
    assert np.mean([truth[path] == label for path, label in listed.items()]) > 0.9
    assert check.finding is not None
    assert [shown.is_query for shown in check.finding.thumbnails[0]] == [True, False, False]


def test_hard_images_are_not_listed_as_label_errors() -> None:
    """With this noise, cleanlab lists 1,366 of the 3,000 images although no label is wrong."""
    training = split("seen", centers(1, classes=375, latent=32), 0.3, 1.5, 10)
    assert check_labels(replace(healthy(), training=training)).measured["suspects"] == []
    labels, rows = corrupt_labels(training.labels, 0.05, seed=0)
    suspects = check_labels(replace(healthy(), training=relabel(training, labels))).measured["suspects"]
    corrupted = set(training.table["path"][rows])
    assert sum(suspect["path"] in corrupted for suspect in suspects) > 0.85 * len(suspects) > 50


def test_very_many_wrong_labels_are_inconclusive_and_listed() -> None:
    model = healthy()
    labels, rows = corrupt_labels(model.training.labels, 0.4, seed=1)
    check = check_labels(replace(model, training=relabel(model.training, labels)))
    assert check.status == "inconclusive" and check.reason
    listed = {suspect["path"] for suspect in check.measured["suspects"]}
    assert len(listed & set(model.training.table["path"][rows])) > 0.9 * len(listed) > 50


def test_features_without_information_accuse_no_image() -> None:
    model = healthy()
    noise = np.random.default_rng(0).standard_normal((len(model.training.table), 96))
    check = check_labels(replace(model, training=replace(model.training, baseline_embeddings=noise)))
    assert check.status == "inconclusive" and check.measured["suspects"] == []


@pytest.mark.parametrize(("missing", "run"), [
    ({"unseen": None}, ["proxies", "labels"]),
    ({"proxies": None}, ["overfitting", "confusions", "labels"]),
    ({"unseen": None, "proxies": np.full((CLASSES, 64), np.nan)}, ["labels"]),
])  # fmt: skip
def test_checks_whose_input_is_missing_are_skipped(missing: dict[str, Any], run: list[str]) -> None:
    checks = diagnose(replace(healthy(), **missing)).checks
    assert [check.name for check in checks if check.status != "skipped"] == run
    assert all(check.reason for check in checks if check.status == "skipped")


def test_findings_are_ranked_by_severity() -> None:
    points = centers(2)
    points[1::2] = points[::2]
    model = healthy()
    labels, _ = corrupt_labels(model.training.labels, 0.2)
    unseen, training = split("new", points, 0.3, 0.5, 20), relabel(model.training, labels)
    found = diagnose(replace(model, unseen=unseen, training=training, proxies=None))
    values = [finding.severity.value for _, finding in found.findings]
    assert len(values) >= 2 and values == sorted(values, reverse=True)
    assert found.to_dict()["findings"] == [check.name for check, _ in found.findings]
    assert max(map(len, list(summary_lines(found, width=60))[1:])) <= 60
