"""Each finding where it must be, and none where it must not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from constructed import CLASSES, around, centres, healthy, relabelled, side

from orthoproxy.diagnosis import Check, diagnose, lines, participation_ratio, plant
from orthoproxy.diagnosis.confusions import check_confusions
from orthoproxy.diagnosis.crowding import check_proxies
from orthoproxy.diagnosis.label_errors import check_labels
from orthoproxy.diagnosis.overfitting import check_overfitting
from orthoproxy.diagnosis.size import check_size


def size_of(check: Check) -> float:
    assert check.finding is not None, check.summary
    effect = check.finding.effect
    assert effect.low <= effect.value <= effect.high
    assert check.finding.evidence and check.finding.advice
    return effect.value


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    found = diagnose(healthy())
    assert found.findings == []
    assert all(check.looked_at for check in found.checks)
    assert next(lines(found)) == "healthy: nothing found; looked at 40 unseen classes (test)"


def test_overfitting_is_the_gap_that_training_opened() -> None:
    model = replace(healthy(), unseen=side("new", centres(2), trained=2.5, untrained=0.5, seed=20))
    check = check_overfitting(model)
    gap = check.measured
    opened = gap["training"]["value"] - gap["unseen"]["value"]
    assert size_of(check) == pytest.approx(
        opened - (gap["untrained_training"]["value"] - gap["untrained_unseen"]["value"])
    )
    assert size_of(check) > 0.3
    assert check.finding is not None and check.finding.plot is not None


def test_classes_that_are_hard_for_the_untrained_encoder_too_are_no_overfitting() -> None:
    model = replace(healthy(), unseen=side("new", centres(2), trained=1.6, untrained=1.6, seed=20))
    check = check_overfitting(model)
    assert check.measured["training"]["value"] - check.measured["unseen"]["value"] > 0.2
    assert check.finding is not None  # the untrained encoder knows the seen classes with noise 0.5
    alike = replace(model, training=side("seen", centres(1), trained=0.3, untrained=0.3, seed=10))
    assert check_overfitting(alike).finding is None


def test_collapsed_proxies() -> None:
    model = healthy()
    flat = around(centres(1)[:, :2], np.arange(CLASSES), dim=64, noise=0.0, seed=0)
    check = check_proxies(replace(model, proxies=flat))
    assert check.finding is not None and "collapsed" in check.finding.title
    assert check.measured["effective_rank"] < 2.1 < check.measured["random_rank"]
    assert size_of(check) > 0.5  # the images are where they were, and mostly nearer to another proxy
    assert check.finding.plot is not None


def test_few_directions_that_do_no_harm_are_no_finding() -> None:
    check = check_proxies(healthy(latent=12, noise=0.05))
    assert check.measured["effective_rank"] < 0.5 * check.measured["random_rank"]
    assert check.measured["astray"]["value"] == 0
    assert check.finding is None


def test_crowded_proxies_are_found_where_their_images_mix() -> None:
    model = healthy()
    points = centres(1, latent=48)
    points[1::2] = points[::2] + 0.35 * points[1::2]  # pairs of classes that lie close together
    mixed = side("seen", points, trained=0.9, untrained=0.5, seed=10)
    proxies = around(points, np.arange(CLASSES), 64, 0.0, 0)
    check = check_proxies(replace(model, training=mixed, proxies=proxies))
    assert check.finding is not None and "crowd" in check.finding.title
    assert 0.01 <= size_of(check) <= check.measured["astray"]["value"]
    first, second = (int(name.split()[1]) for name in check.finding.rows[0][:2])
    assert first // 2 == second // 2
    apart = side("seen", points, trained=0.01, untrained=0.5, seed=10)
    assert check_proxies(replace(model, training=apart, proxies=proxies)).finding is None  # close, but nothing mixes


@pytest.mark.parametrize("proxies", [None, np.full((CLASSES, 64), np.nan)])
def test_without_usable_proxies_there_is_nothing_to_look_at(proxies: np.ndarray | None) -> None:
    check = check_proxies(replace(healthy(), proxies=proxies))
    assert check.summary.startswith("not looked at")
    assert check.finding is None


def test_two_names_for_one_class_are_confused() -> None:
    points = centres(2)
    points[7] = points[3]
    check = check_confusions(replace(healthy(), unseen=side("new", points, 0.3, 0.5, 20)))
    assert check.finding is not None
    (pair,) = check.measured["pairs"]
    assert (pair["first"], pair["second"], pair["queries"]) == ("new 003", "new 007", 16)
    assert size_of(check) == pytest.approx((pair["to_first"] + pair["to_second"]) / (CLASSES * 8))
    (shots,) = check.finding.shots
    assert [shot.label for shot in shots] == ["new 003", "new 007", "new 007", "new 003"]


def test_errors_that_are_spread_over_all_classes_are_no_confusion() -> None:
    generator = np.random.default_rng(0)
    images = side("new", centres(2), 0.3, 0.5, 20)
    rows = generator.choice(len(images.labels), 60, replace=False)
    trained = images.trained.copy()
    trained[rows] = trained[generator.permutation(rows)]
    check = check_confusions(replace(healthy(), unseen=replace(images, trained=trained)))
    assert check.measured["wrong"]["value"] > 0.1
    assert check.finding is None


def test_planted_wrong_labels_are_found() -> None:
    model = healthy()
    assert check_labels(model).finding is None
    labels, planted = plant(model.training.labels, 0.2, seed=3)
    check = check_labels(replace(model, training=relabelled(model.training, labels)))
    assert 0.1 < size_of(check) < 0.35
    paths = model.training.table["path"]
    listed = {suspect["path"] for suspect in check.measured["suspects"]}
    changed = set(paths[planted])
    assert len(listed & changed) / len(listed) > 0.9
    assert len(listed & changed) / len(changed) > 0.3
    truth = dict(zip(paths, model.training.table["label"], strict=True))
    right = [suspect["looks_like"] == truth[suspect["path"]] for suspect in check.measured["suspects"]]
    assert np.mean(right) > 0.9
    assert check.finding is not None and [shot.asked for shot in check.finding.shots[0]] == [True, False, False]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_five_percent_wrong_labels_of_three_thousand_are_told_and_most_are_found(seed: int) -> None:
    training = side("seen", centres(1, classes=375, latent=32), 0.3, 0.8, 10)
    labels, planted = plant(training.labels, 0.05, seed)
    check = check_labels(replace(healthy(), training=relabelled(training, labels)))
    assert check.state == "found" and 0.03 < size_of(check) < 0.07
    listed = {suspect["path"] for suspect in check.measured["suspects"]}
    changed = set(training.table["path"][planted])
    precision, recall = len(listed & changed) / len(listed), len(listed & changed) / len(changed)
    assert precision > 0.95 and recall > 0.5


def test_very_many_wrong_labels_are_said_to_be_many_and_listed_in_the_file() -> None:
    model = healthy()
    labels, planted = plant(model.training.labels, 0.4, seed=1)
    check = check_labels(replace(model, training=relabelled(model.training, labels)))
    assert check.state == "cannot be told" and check.finding is None
    assert "of the training labels look wrong; so many are, or the untrained features know little" in check.summary
    listed = {suspect["path"] for suspect in check.measured["suspects"]}
    assert len(listed & set(model.training.table["path"][planted])) > 0.9 * len(listed) > 50


def test_features_that_know_nothing_of_the_classes_accuse_nobody() -> None:
    model = healthy()
    noise = np.random.default_rng(0).standard_normal((len(model.training.table), 96))
    check = check_labels(replace(model, training=replace(model.training, untrained=noise)))
    assert check.finding is None
    assert check.state == "cannot be told"
    assert check.summary.startswith("cannot be told")
    assert check.measured["suspects"] == []


def test_an_embedding_too_small_for_what_it_holds() -> None:
    check = check_size(healthy(dim=8, latent=48, noise=0.9))
    assert size_of(check) > 0.01
    scores = [score["value"] for score in check.measured["scores"]]
    assert check.measured["sizes"] == [2, 4, 8]
    assert scores == sorted(scores)
    assert check.finding is not None and "16" in check.finding.advice[0]


def test_an_embedding_with_room_to_spare() -> None:
    check = check_size(healthy(dim=128, latent=6, noise=0.9))
    assert check.measured["participation_ratio"] < 7
    assert check.finding is None


def test_without_unseen_classes_the_others_are_still_looked_at() -> None:
    found = diagnose(replace(healthy(), unseen=None))
    assert {check.name for check in found.checks if check.looked_at} == {"proxies", "labels"}


def test_findings_are_ranked_by_what_is_at_stake() -> None:
    points = centres(2)
    points[1::2] = points[::2]
    model = healthy()
    labels, _ = plant(model.training.labels, 0.2)
    found = diagnose(
        replace(
            model, unseen=side("new", points, 0.3, 0.5, 20), training=relabelled(model.training, labels), proxies=None
        )
    )
    effects = [check.finding.effect.value for check in found.findings if check.finding]
    assert len(effects) >= 2 and effects == sorted(effects, reverse=True)
    assert found.to_dict()["findings"] == [check.name for check in found.findings]
    assert sum("try:" in line for line in lines(found)) == len(effects)


def test_the_participation_ratio_ignores_the_mean_and_the_scale() -> None:
    x = np.random.default_rng(0).standard_normal((500, 5))
    assert participation_ratio(x) == pytest.approx(participation_ratio(7 * x + 100))
    assert 4.8 < participation_ratio(x) <= 5
