"""A closed set from end to end: training, scores, report, and a class that is enrolled without training."""

from pathlib import Path

import numpy as np
import pytest
from command_line import json_of
from pages import ParsedPage
from PIL import Image
from small_runs import make_config, write_shades

import orthoproxy
from orthoproxy.data.table import evaluation_images, select_split
from orthoproxy.runs.dataset import read_splits, split_table
from orthoproxy.runs.device import make_scoring
from orthoproxy.runs.run_folder import RunFolder

KNOWN, UNSEEN, IMAGES = [f"known {number}" for number in range(8)], ["unseen 0", "unseen 1"], 25


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Eight known classes, and two in the test split alone; 104 images of validation are enough for a threshold."""
    folder, generator = tmp_path_factory.mktemp("closed"), np.random.default_rng(1)
    lines = ["path,label,split"]
    for label in [*KNOWN, *UNSEEN]:
        write_shades(folder / label, generator.integers(20, 236, size=3), IMAGES, generator)
        split = "test" if label in UNSEEN else ""
        lines += [f"{label}/{number}.png,{label},{split}" for number in range(IMAGES)]
    (folder / "images.csv").write_text("\n".join(lines) + "\n")
    changes = {"name": "csv", "csv": str(folder / "images.csv"), "root": None, "split_by": "image", "workers": 0}
    changes |= {"test_fraction": 0.2, "validation_fraction": 0.65, "resize": 32}
    config = make_config(folder, {"data": changes, "training.epochs": 1, "sampler.batch_size": 16})
    return orthoproxy.train(config, folder / "run")


def test_scores_and_threshold_are_of_new_images_of_the_training_classes(run: RunFolder) -> None:
    table, scores, model = split_table(run.config), run.scores, run.load_model()
    assert scores is not None and scores["known_classes"] and model.classes == KNOWN
    train, validation, test = (select_split(table, split) for split in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (8 * 7, 8 * 13, 8 * 5 + 50)
    assert (scores["queries"], scores["classes"], scores["queries_without_positive"]) == (40, 8, 50)
    assert (scores["unseen"]["queries"], scores["unseen"]["classes"]) == (50, 2)
    alone = test[test["label"].isin(UNSEEN)].reset_index(drop=True)
    unseen = orthoproxy.evaluate(model, alone, scoring=make_scoring(run.config.evaluation))
    assert unseen.model["map@r"].value == pytest.approx(scores["unseen"]["model"]["map@r"]["value"])
    x, y = (model.embed(part["path"].tolist()).astype(float) for part in (validation, train))
    other = np.where(validation["label"].to_numpy()[:, None] == train["label"].to_numpy(), -1, x @ y.T).max(axis=1)
    assert model.threshold == scores["vote"]["threshold"]
    assert (other >= model.threshold).sum() == 1 == round(0.01 * len(other))
    assert all("coverage" in scores[name] for name in ("model", "baseline", "difference"))
    selecting = orthoproxy.evaluate(
        model, evaluation_images(table, "validation"), scoring=make_scoring(run.config.evaluation)
    )
    assert run.records()["validation/map@r"].dropna().item() == pytest.approx(selecting.model["map@r"].value)


def test_report_and_commands_say_that_the_classes_are_known(run: RunFolder, capsys) -> None:
    page = ParsedPage(run.report.read_text())
    assert "Unseen classes" in page.tables[0][0]
    evaluated = json_of(["evaluate", run.folder, "--workers", 0])
    assert capsys.readouterr().out.startswith("Known classes: 40 queries")
    assert evaluated["known_classes"] and evaluated["model"]["map@r"] == run.scores["model"]["map@r"]
    split_table(run.config).to_csv(listed := run.folder.parent / "listed.csv", index=False)
    given = json_of(["evaluate", run.folder, listed, "--data.root", run.folder.parent, "--workers", 0])
    assert given["known_classes"] and given["model"] == evaluated["model"]
    (diagnosis,) = json_of(["diagnose", run.folder, "--workers", 0])["runs"]
    assert diagnosis["unseen"] == {"split": "test", "classes": 2}


def test_near_copies_among_the_training_images_leave_the_gallery(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(8):
        pixels = generator.integers(0, 256, size=(16, 16, 3)).astype(np.uint8)
        for copy in "ab":
            (tmp_path / f"class {number % 2}").mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / f"class {number % 2}" / f"{number}{copy}.png")
    changes = {"name": "folder", "root": str(tmp_path), "split_by": "image", "test_fraction": 0.5, "workers": 0}
    table = read_splits(make_config(tmp_path, {"data": changes, "evaluation.exclude_duplicates": True}))
    assert (table["copies"] >= 0).all() and table["copies"].nunique() == 8


def test_a_class_is_enrolled_by_indexing_three_of_its_images(run: RunFolder, tmp_path: Path, capsys) -> None:
    table = split_table(run.config)
    rows = select_split(table, "train")
    new = table[table["label"] == UNSEEN[0]]["path"].tolist()
    (tmp_path / "known.csv").write_text(rows[["path", "label"]].to_csv(index=False))
    (tmp_path / "new.csv").write_text("path,label\n" + "".join(f"{path},{UNSEEN[0]}\n" for path in new[:3]))
    words = ["--root", run.folder.parent, "--data.root", run.folder.parent, "--workers", 0]
    json_of(["index", tmp_path / "catalog", tmp_path / "known.csv", "--model", run.folder, *words])
    search = ["search", tmp_path / "catalog", new[3], "--vote"]
    (stranger,) = json_of(["search", tmp_path / "catalog", new[3], "-k", 1])
    limit = stranger["results"][0]["similarity"] + 1e-4
    (before,) = json_of([*search, "--min-similarity", limit])
    assert (before["label"], before["share"], before["results"]) == (None, 0, [])
    assert capsys.readouterr().out.endswith(": unknown\n")
    assert json_of(["index", tmp_path / "catalog", tmp_path / "new.csv", *words[2:]])["added"] == 3
    (after,) = json_of([*search, "--min-similarity", limit])
    assert after["label"] == UNSEEN[0] and after["share"] == pytest.approx(1)
    (auto,) = json_of(search)
    assert all(hit["similarity"] >= run.load_model().threshold for hit in auto["results"])
