"""Cells of a study: their configuration, and what stays of their runs."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import orthoproxy
from orthoproxy.core.errors import InputError
from orthoproxy.data import select_split
from orthoproxy.evaluation import mean_scores
from orthoproxy.reports import effective_rank, orthogonality_distance, welch_floor
from orthoproxy.runs import config as c
from orthoproxy.runs import study_trials as study_cells
from orthoproxy.runs.build import make_scoring, split_table
from orthoproxy.runs.recipes import write_config
from orthoproxy.runs.study_configs import OF_THE_MACHINE, check_classes, config_of_cell
from orthoproxy.runs.study_trials import Place, judge_cell, read_result, train_cell
from orthoproxy.studies.plan import Cell, Method, Study, score_of
from orthoproxy.training import Diverged

WEIGHT = "loss.orthogonality.weight"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Twelve classes of four images: stripes of a width and grey of the class's own."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(12):
        (root / f"class {number}").mkdir()
        for copy in range(4):
            stripes = (np.arange(32) // (1 + number % 6) + copy) % 2
            pixels = stripes[None, :, None] * (90 + 10 * number) + generator.integers(0, 90, size=(32, 32, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"class {number}" / f"{copy}.png")
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def study(photos, tmp_path) -> Study:
    base = c.Config(
        data=c.Data(name="folder", root=str(photos), test_fraction=0.4, validation_fraction=0.5, workers=0, resize=32),
        encoder=c.Encoder(name="deit_tiny_patch16_224", weights="none", embedding_dim=8, image_size=32),
        training=c.Training(epochs=2, batch_size=5, log_every=1, precision="32-true", select_on="none"),
        evaluation=c.Evaluation(recall_at=(1, 2), draws=50),
    )
    write_config(base, tmp_path / "base.yaml")
    methods = {"off": Method(set={WEIGHT: 0}), "on": Method(choose={WEIGHT: [0.1, 1]})}
    return Study("s", methods, "off", ["on"], seeds=[0, 1], base=tmp_path / "base.yaml", path=tmp_path / "s.yaml")


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path / "runs", tmp_path / "results")


def frozen(study: Study) -> Study:
    return replace(study, set={"encoder.freeze": True})


def test_a_cell_is_the_recipe_with_its_options(study, tmp_path):
    (tmp_path / "part.yaml").write_text("loss: {name: ArcFaceLoss, args: {scale: 32}}\ntraining: {epochs: 7}")
    method = Method(set={"loss.args.margin": 20, "data.test_classes": ["class 1"]}, recipe=tmp_path / "part.yaml")
    study = replace(study, methods={"arc": method}, set={"training.batch_size": 4})
    config = config_of_cell(study, Cell("arc", {WEIGHT: 1}, 3))
    assert (config.loss.name, config.loss.args) == ("ArcFaceLoss", {"scale": 32, "margin": 20})
    assert config.loss.orthogonality.weight == 1
    assert config.data.test_classes == ["class 1"]
    assert (config.training.epochs, config.training.batch_size, config.training.seed) == (7, 4, 3)
    assert config.encoder.embedding_dim == 8  # of the base
    assert config.training.select_on == "validation"  # though the base trains on all


def test_a_changed_recipe_is_read_again(study):
    cell = Cell("off", {}, 0)
    assert config_of_cell(study, cell).training.epochs == 2
    study.base.write_text(study.base.read_text().replace("epochs: 2", "epochs: 3"))
    assert config_of_cell(study, cell).training.epochs == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss.orthogonality.wait": 1}, "did you mean loss.orthogonality.weight"),
        ({"training.epochs": 0}, "s.yaml: off_seed0: training.epochs: must be 1 or more"),
        ({"training.select_on": "test"}, "training.select_on: test; a study chooses on validation classes"),
        ({"evaluation.recall_at": [2]}, "evaluation.recall_at: a study looks at Recall@1"),
    ],
)
def test_what_a_study_cannot_do_is_named(study, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        config_of_cell(replace(study, set=options), Cell("off", {}, 0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"set": {"data.validation_fraction": 0.0}}, "off_seed0: no validation classes, which a study needs; see data"),
        ({"set": {"data.test_fraction": 0.0}}, "off_seed0: no test classes, which a study needs; see data"),
        (
            {"methods": {"off": Method(choose={"data.validation_fraction": [0.5, 0.9]})}},
            "off_validation_fraction-0.5_seed0 and off_validation_fraction-0.9_seed0 would be scored on different vali",
        ),
        (
            {"methods": {"off": Method(), "on": Method({"data.test_fraction": 0.2})}},
            "off_seed0 and on_seed0 would be scored on different test classes; leave the options that decide on them",
        ),
    ],
)
def test_cells_that_could_not_be_compared_are_found_before_the_first_run(study, changes, message):
    check_classes(study)
    changed = replace(study, **{**changes, "set": study.set | changes.get("set", {})}, tuning_seeds=[0])
    with pytest.raises(InputError, match=message):
        check_classes(changed)


def test_what_a_method_trains_on_may_differ_from_another(study):
    check_classes(replace(study, methods={"off": Method(), "on": Method({"data.validation_fraction": 0.9})}))
    check_classes(replace(study, methods={"off": Method(choose={"data.augmentation.jitter": [0, 0.4]})}))


def test_a_trained_cell_leaves_its_scores_and_costs(study, place):
    cell = Cell("on", {WEIGHT: 0.1}, 1)
    result = train_cell(study, cell, place)
    assert json.loads(place.file(cell).read_text()) == json.loads(json.dumps(result))
    about = ("format_version", "study", "cell", "method", "setting", "seed", "test")
    assert [result[name] for name in about] == [1, "s", "on_weight-0.1_seed1", "on", {WEIGHT: 0.1}, 1, None]

    run = place.run(cell)
    assert run.trained
    assert not run.finished
    config = config_of_cell(study, cell)
    held_out, scoring = select_split(split_table(config), "validation"), make_scoring(config.evaluation)
    assert result["validation"]["classes"] == sorted(set(held_out["label"]))
    assert sum(result["validation"]["queries"]) == len(held_out)
    for who, model in (("trained", run.model), ("untrained", orthoproxy.load(run.folder / "baseline"))):
        scores = mean_scores(model.embed(held_out["path"].tolist()), held_out, scoring)
        for metric in ("recall@1", "map@r"):
            assert score_of(result, "validation", metric, who) == pytest.approx(scores[metric], abs=2e-6)

    records = run.records()
    assert [point["epoch"] for point in result["curve"]] == [1, 2]
    assert [point["recall@1"] for point in result["curve"]] == pytest.approx(
        records["validation/recall@1"].dropna().tolist(), abs=1e-6
    )
    batches = records["loss"].notna().sum()
    assert result["images"] == result["curve"][-1]["images"] == 5 * batches
    assert result["seconds"] == pytest.approx(records["seconds"].max(), abs=0.06)
    assert result["elapsed"] >= result["seconds"]
    assert result["environment"] == run.config.environment | {"precision": "32-true"}

    proxies = run.model.proxies.numpy()
    assert (result["geometry"]["classes"], result["geometry"]["dim"]) == proxies.shape
    assert result["geometry"]["effective_rank"] == pytest.approx(effective_rank(proxies), abs=1e-6)
    assert result["geometry"]["squares"] == pytest.approx(orthogonality_distance(proxies), abs=1e-6)
    assert result["geometry"]["floor"] == welch_floor(*proxies.shape)
    unit = proxies / np.linalg.norm(proxies, axis=1, keepdims=True)
    largest = (unit @ unit.T - 2 * np.eye(len(unit))).max()
    assert result["geometry"]["largest_cosine"] == pytest.approx(largest, abs=1e-5)

    judged = judge_cell(study, cell, place)
    assert judged == result | {"test": judged["test"], "trained_again": None}
    orthoproxy.runs.evaluate.judge(run)  # what `orthoproxy report` would say
    for who in ("trained", "untrained"):
        for metric in ("recall@1", "map@r"):
            assert score_of(judged, "test", metric, who) == pytest.approx(run.scores[who][metric]["value"], abs=2e-6)


def test_a_frozen_cell_leaves_no_run_and_is_judged_all_the_same(study, place):
    study, cell = frozen(study), Cell("off", {}, 0)
    trained = train_cell(study, cell, place)
    assert not place.run(cell).folder.exists()
    judged = judge_cell(study, cell, place)
    assert not place.run(cell).folder.exists()
    again = judged["trained_again"]
    assert again == {name: trained[name] for name in ("date", "environment")}
    assert trained["test"] is None
    assert {**judged, "test": None} == {**trained, "trained_again": again}
    whole = orthoproxy.train(config_of_cell(study, cell), place.runs / "whole")
    assert score_of(judged, "test", "recall@1") == pytest.approx(whole.scores["model"]["recall@1"]["value"], abs=2e-6)


def test_what_the_training_says_goes_to_a_file(study, place, capfd):
    train_cell(study, Cell("off", {}, 0), place)
    assert "epoch" not in capfd.readouterr().err
    assert "epoch 2/2" in (place.run(Cell("off", {}, 0)).folder / "log.txt").read_text()


def test_a_training_that_diverges_is_a_result(study, place, monkeypatch):
    def diverge(config, folder, **how):
        orthoproxy.train(config, folder, **how)
        raise Diverged("the loss is nan at step 3")

    monkeypatch.setattr(study_cells, "train", diverge)
    cell = Cell("off", {}, 0)
    result = train_cell(frozen(study), cell, place)
    assert result["failed"] == "the loss is nan at step 3"
    assert result["validation"] is result["test"] is None
    assert read_result(frozen(study), cell, place) == result


def test_a_second_training_that_diverges_is_told_with_the_remedy(study, place, monkeypatch):
    def diverge(config, folder, **how):
        raise Diverged("the loss is nan at step 3")

    study, cell = frozen(study), Cell("off", {}, 0)
    train_cell(study, cell, place)
    monkeypatch.setattr(study_cells, "train", diverge)
    message = f"{place.file(cell)}: trained a second time to be judged, .* the loss is nan at step 3; remove the file"
    with pytest.raises(InputError, match=message):
        judge_cell(study, cell, place)


def test_results_that_hold_what_is_no_default_go_with_these_defaults():
    """Where a default changes, a cell that was trained with the old one would pass for one with the new."""
    ours = {name: value for name, value in c.flat(c.Config()).items() if name not in OF_THE_MACHINE}
    before = json.loads((Path(__file__).parent / "defaults.json").read_text())
    assert json.loads(json.dumps(ours)) == before, (
        "a default changed: give it, as it was, to the studies in studies/ that rely on it, so that their cells in "
        "docs/studies stay theirs; then write the new defaults to tests/studies/defaults.json"
    )


def test_other_errors_are_no_result(study, place):
    study.base.write_text(study.base.read_text().replace(" root: ", " root: /nowhere"))
    with pytest.raises(InputError, match=r"data\.root"):
        train_cell(study, Cell("off", {}, 0), place)
    assert not place.file(Cell("off", {}, 0)).exists()


def test_a_result_of_another_configuration_is_not_taken(study, place):
    study, cell = frozen(study), Cell("off", {}, 0)
    train_cell(study, cell, place)
    assert read_result(study, cell, place) is not None
    moved = replace(study, set=study.set | {"data.workers": 1, "data.cache": "elsewhere"})
    assert read_result(moved, cell, place) is not None  # what differs between machines
    longer = replace(study, set=study.set | {"training.epochs": 5})
    with pytest.raises(InputError, match=r"is of a run with training\.epochs 2, and the study has 5; remove"):
        read_result(longer, cell, place)
    default = replace(study, set=study.set | {WEIGHT: 0.5}, methods={"off": Method()})
    with pytest.raises(InputError, match=r"with loss\.orthogonality\.weight the default, and the study has 0\.5"):
        read_result(default, cell, place)


def test_nothing_can_be_judged_before_it_is_trained(study, place):
    with pytest.raises(InputError, match="must be trained first"):
        judge_cell(study, Cell("off", {}, 0), place)
