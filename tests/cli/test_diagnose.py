"""The verb on a run trained here: what it writes, prints and refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orthoproxy import Embedder
from orthoproxy.cli import main as cli
from orthoproxy.core.errors import InputError
from orthoproxy.runs import config as c
from orthoproxy.runs.diagnose import EmbeddingCache, diagnose_runs, load_diagnosis_input
from orthoproxy.runs.run_folder import Run
from orthoproxy.runs.train import train

COLOURS = [
    "red",
    "green",
    "blue",
    "gold",
    "pink",
    "navy",
    "olive",
    "teal",
    "plum",
    "peru",
    "tan",
    "lime",
    "aqua",
    "gray",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Fourteen colours, four of them for testing, two for validation."""
    root = tmp_path_factory.mktemp("diagnose")
    for colour in COLOURS:
        (root / "images" / colour).mkdir(parents=True)
        for shade in range(3):
            Image.new("RGB", (32 + shade, 32), colour).save(root / "images" / colour / f"{shade}.png")
    return train(
        c.Config(
            data=c.Data(
                name="folder", root=str(root / "images"), test_fraction=0.3, validation_fraction=0.2, workers=0
            ),
            encoder=c.Encoder(name="deit_tiny_patch16_224", weights="none", embedding_dim=8, image_size=32),
            training=c.Training(epochs=1, batch_size=4, precision="32-true"),
        ),
        root / "run",
    )


def test_it_writes_the_page_beside_the_report(run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    numbers = tmp_path / "new" / "numbers.json"
    assert cli.main(["diagnose", str(run.folder), "--json", str(numbers), "--workers", "0"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert re.match(r"run: .* 4 unseen classes \(test\)$", said[0])
    assert said[-1] == f"page: {run.folder / 'diagnosis.html'}"
    assert (run.folder / "diagnosis.html").read_text(encoding="utf-8").lstrip().startswith("<!DOCTYPE html>")
    told = json.loads(numbers.read_text(encoding="utf-8"))
    assert told["format_version"] == 2
    (only,) = told["runs"]
    assert only["unseen"] == {"split": "test", "classes": 4}
    assert [check["name"] for check in only["checks"]] == [
        "overfitting",
        "proxies",
        "confusions",
        "labels",
        "embedding size",
    ]


def test_several_runs_go_where_they_are_told_and_are_called_apart(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["diagnose", str(run.folder), str(run.folder), "--workers", "0"]
    assert cli.main(arguments) == 2
    assert "--out: missing" in capsys.readouterr().err
    assert cli.main([*arguments, "--out", str(tmp_path / "both"), "--on", "validation"]) == 0
    assert (tmp_path / "both" / "diagnosis.html").is_file()
    assert "2 validation classes" in (tmp_path / "both" / "diagnosis.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("few", "split"), [(2, "validation"), (3, "test")])
def test_what_chose_the_checkpoint_is_looked_at_unless_it_is_little(
    run: Run, monkeypatch: pytest.MonkeyPatch, few: int, split: str
) -> None:
    monkeypatch.setattr("orthoproxy.runs.diagnose.FEW_CLASSES", few)
    assert load_diagnosis_input(run, EmbeddingCache()).unseen_split == split
    assert load_diagnosis_input(run, EmbeddingCache(), on="test").unseen_split == "test"


def test_images_are_embedded_once_for_all_runs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded = []
    embed = Embedder.embed
    monkeypatch.setattr(Embedder, "embed", lambda self, x, **given: embedded.append(len(x)) or embed(self, x, **given))
    embeddings = EmbeddingCache()
    first, second = (load_diagnosis_input(run, embeddings) for _ in range(2))
    assert len(embedded) == 4  # training and unseen images, each by the model and the untrained encoder
    assert np.array_equal(first.training.trained, second.training.trained)
    assert set(first.training.names) == set(first.classes)


def test_with_fewer_images_whole_classes_are_left_out(run: Run) -> None:
    few = load_diagnosis_input(run, EmbeddingCache(), most_images=7).training
    assert few.table["label"].value_counts().tolist() == [3, 3]


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["runs/nowhere"], "no run in runs/nowhere"),
        (["RUN", "--most-images", "0"], "--most-images: must be 1 or more"),
        (["RUN", "--on", "training"], "on"),
        (["RUN", "--data.root", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_used_is_named(
    run: Run, arguments: list[str], remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["diagnose", *(str(run.folder) if word == "RUN" else word for word in arguments)]) == 2
    assert remedy in capsys.readouterr().err


def test_other_images_than_those_trained_on_are_refused(run: Run, tmp_path: Path) -> None:
    for colour in ("white", "black", "brown", "red", "green"):
        (tmp_path / colour).mkdir()
        for number in range(2):
            Image.new("RGB", (32, 32), colour).save(tmp_path / colour / f"{number}.png")
    with pytest.raises(InputError) as raised:
        list(diagnose_runs([run.folder], tmp_path / "out", root=str(tmp_path)))
    assert raised.value.field == "root"
