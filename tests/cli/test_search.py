"""Searching from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from orthoproxy.cli.main import main
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.models import Encoder


@pytest.fixture(scope="module")
def place(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog of the twelve pictures, with the model that made it beside it."""
    folder = tmp_path_factory.mktemp("search")
    embedder = Embedder(Encoder("deit_tiny_patch16_224", embedding_dim=8, image_size=32))
    embedder.threshold = 0.5
    embedder.save(folder / "model")
    lines = [f"{path.relative_to(image_folder)},{path.parent.name},{path.stem}" for path in image_folder.rglob("*.png")]
    (image_folder / "list.csv").write_text("path,label,group\n" + "\n".join(sorted(lines)) + "\n")
    command = ["index", str(folder / "catalog"), str(image_folder / "list.csv"), "--model", str(folder / "model")]
    assert main([*command, "--workers", "0"]) == 0
    return folder / "catalog"


def found(capsys: pytest.CaptureFixture[str], place: Path, *options: object) -> list[dict]:
    assert main(["search", str(place), *map(str, options), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_an_image_finds_itself_and_its_like(
    place: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [image_folder / "blue" / "0.png", image_folder / "red" / "3.png"]
    told = found(capsys, place, *images, "-k", 4)
    assert [one["image"] for one in told] == [str(image) for image in images]
    for one in told:
        assert len(one["results"]) == 4
        assert one["results"][0]["path"] == one["image"]
        assert one["results"][0]["similarity"] == pytest.approx(1, abs=1e-5)
        similarities = [hit["similarity"] for hit in one["results"]]
        assert similarities == sorted(similarities, reverse=True)
        assert one["results"][0].keys() == {"id", "path", "label", "group", "similarity"}


def test_conditions_and_groups(place: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = image_folder / "blue" / "0.png"
    (told,) = found(capsys, place, image, "--where", "label != 'blue' and path not like 'red/%'")
    assert {hit["label"] for hit in told["results"]} == {"green"}
    assert len(told["results"]) == 4
    (told,) = found(capsys, place, image, "--diverse")
    assert sorted(hit["group"] for hit in told["results"]) == ["0", "1", "2", "3"]


def test_too_little_alike_is_no_match(place: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(image_folder / "blue" / "0.png")
    everything = found(capsys, place, image, "-k", 12)[0]["results"]
    bound = everything[5]["similarity"]
    (told,) = found(capsys, place, image, "-k", 12, "--min-similarity", bound)
    assert told["results"] == everything[:6]
    (told,) = found(capsys, place, image, "-k", 12, "--min-similarity", "auto")
    assert told["results"] == [hit for hit in everything if hit["similarity"] >= 0.5]
    other = ["search", str(place), image, "--where", "path != 'blue/0.png'", "--min-similarity", "1"]
    assert main(other) == 0
    assert capsys.readouterr().out == f"{image}: no match\n"


def test_the_table_for_a_person(place: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(image_folder / "blue" / "0.png")
    assert main(["search", str(place), image, "-k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == image
    assert lines[1].split() == ["1", "1.000", "blue", "0", image]
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--where", "label = 'x'"], "compare with == or !="),
        (["--where", ""], "label, group or path is missing"),
        (["--min-similarity", "much"], "--min-similarity: much; give a number from -1 to 1, or auto"),
        (["--min-similarity", "nan"], "--min-similarity: nan"),
        (["-k", "0"], "k: 0; from 1 to 16384"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_what_is_refused(
    place: Path, image_folder: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(place), str(image_folder / "blue" / "0.png"), *options]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert said in told.err and told.err.count("\n") == 1


def test_no_image_and_no_catalog(place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["search", str(place), str(tmp_path / "nowhere.png")]) == 2
    assert "nowhere.png" in capsys.readouterr().err
    assert main(["search", str(tmp_path / "nowhere"), "x.png"]) == 2
    assert "no catalog; make one with" in capsys.readouterr().err


def test_a_moved_model_and_another_one(
    place: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = image_folder / "blue" / "0.png"
    shutil.copytree(place.parent / "model", tmp_path / "moved")
    assert found(capsys, place, image, "--model", tmp_path / "moved")[0]["results"][0]["path"] == str(image)
    Embedder(Encoder("deit_tiny_patch16_224", embedding_dim=8, image_size=32)).save(tmp_path / "other")
    assert main(["search", str(place), str(image), "--model", str(tmp_path / "other")]) == 2
    assert "--model: of model" in capsys.readouterr().err
