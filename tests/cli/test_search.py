"""index and search."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import input_error

from orthoproxy.cli.main import main
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.models import Encoder


@pytest.fixture(scope="module")
def catalog(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images, indexed from a CSV file, with the model beside the catalog."""
    folder = tmp_path_factory.mktemp("search")
    embedder = Embedder(Encoder("test_vit", embedding_dim=8, image_size=32))
    embedder.threshold = 0.5
    embedder.save(folder / "model")
    lines = [f"{path.relative_to(image_folder)},{path.parent.name},{path.stem}" for path in image_folder.rglob("*.png")]
    (image_folder / "list.csv").write_text("path,label,group\n" + "\n".join(sorted(lines)) + "\n")
    arguments = ["index", str(folder / "catalog"), str(image_folder / "list.csv"), "--model", str(folder / "model")]
    assert main([*arguments, "--workers", "0"]) == 0
    return folder / "catalog"


def search(capsys: pytest.CaptureFixture[str], catalog: Path, *options: object) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["search", str(catalog), *map(str, options), "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def test_an_image_is_its_own_best_match(catalog: Path, image_folder: Path, capsys) -> None:
    images = [image_folder / "blue" / "0.png", image_folder / "red" / "3.png"]
    found = search(capsys, catalog, *images, "-k", 4)
    assert [one["image"] for one in found] == [str(image) for image in images]
    for one in found:
        similarities = [hit["similarity"] for hit in one["results"]]
        assert len(similarities) == 4 and similarities == sorted(similarities, reverse=True)
        assert one["results"][0]["path"] == one["image"] and similarities[0] == pytest.approx(1, abs=1e-5)
        assert one["results"][0].keys() == {"id", "path", "label", "group", "similarity"}


def test_filters_groups_and_a_minimum_similarity(catalog: Path, image_folder: Path, capsys) -> None:
    image = str(image_folder / "blue" / "0.png")
    (found,) = search(capsys, catalog, image, "--where", "label != 'blue' and path not like 'red/%'")
    assert len(found["results"]) == 4 and {hit["label"] for hit in found["results"]} == {"green"}
    (found,) = search(capsys, catalog, image, "--diverse")
    assert sorted(hit["group"] for hit in found["results"]) == ["0", "1", "2", "3"]
    everything = search(capsys, catalog, image, "-k", 12)[0]["results"]
    (found,) = search(capsys, catalog, image, "-k", 12, "--min-similarity", everything[5]["similarity"])
    assert found["results"] == everything[:6]
    (found,) = search(capsys, catalog, image, "-k", 12, "--min-similarity", "auto")
    assert found["results"] == [hit for hit in everything if hit["similarity"] >= 0.5]
    assert main(["search", str(catalog), image, "--where", "path != 'blue/0.png'", "--min-similarity", "1"]) == 0
    assert capsys.readouterr().out == f"{image}: no match\n"
    assert main(["search", str(catalog), image, "-k", "1"]) == 0
    assert capsys.readouterr().out.split() == [image, "1", "1.000", "blue", "0", image]


def test_index_again_prune_delete_and_info(catalog: Path, image_folder: Path, tmp_path: Path, capsys) -> None:
    arguments = ["index", str(tmp_path / "catalog"), str(image_folder), "--model", str(catalog.parent / "model")]
    assert main([*arguments, "--json", str(tmp_path / "x.json")]) == 0
    first = json.loads((tmp_path / "x.json").read_text())
    assert (first["images"], first["added"], first["unchanged"]) == (12, 12, 0)
    capsys.readouterr()
    assert main([*arguments[:2], str(image_folder / "list.csv"), "--delete", "red", "--info", "--json", "-"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert (second["replaced"], second["deleted"], second["info"]["images"]) == (12, 4, 8)  # groups are new
    shutil.copytree(image_folder / "blue", tmp_path / "some" / "blue")
    assert input_error([*arguments[:2], str(tmp_path / "some"), "--root", str(tmp_path)]).field == "root"
    assert input_error([*arguments[:2], "--prune", "--info"]).field == "images"
    assert input_error(arguments[:2]).field == "images"
    assert input_error(["index", str(tmp_path / "new"), str(image_folder)]).field == "model"


def test_the_model_may_be_moved_but_not_replaced(catalog: Path, image_folder: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(catalog.parent / "model", tmp_path / "moved")
    image = str(image_folder / "blue" / "0.png")
    assert search(capsys, catalog, image, "--model", tmp_path / "moved")[0]["results"][0]["path"] == image
    Embedder(Encoder("test_vit", embedding_dim=8, image_size=32)).save(tmp_path / "other")
    assert input_error(["search", str(catalog), image, "--model", str(tmp_path / "other")]).field == "model"
    assert Path(str(input_error(["search", str(catalog), "nowhere.png"]).path)) == Path("nowhere.png")
    for options in (["--where", "label = 'x'"], ["--where", ""], ["--model", "nowhere"], ["-k", "99999"]):
        assert main(["search", str(catalog), image, *options]) == 2
