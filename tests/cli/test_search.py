"""index and search."""

import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_line import json_of, loaded_by
from errors import input_error

from orthoproxy.catalog.catalog import Catalog
from orthoproxy.cli.main import main
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.export.onnx_export import describe, write_metadata, write_onnx
from orthoproxy.models import Encoder


@pytest.fixture(scope="module")
def catalog(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images, indexed from a CSV file, with the model beside the catalog."""
    folder = tmp_path_factory.mktemp("search")
    embedder = Embedder(Encoder("test_vit", embedding_dim=8, image_size=32))
    embedder.threshold = 0.5
    embedder.save(folder / "model")
    arguments = ["index", str(folder / "catalog"), str(image_folder / "list.csv"), "--model", str(folder / "model")]
    assert main([*arguments, "--workers", "0"]) == 0
    return folder / "catalog"


def search(catalog: Path, *options: object) -> list[dict[str, Any]]:
    return json_of(["search", catalog, *options])


@pytest.mark.parametrize("exported", [False, True])
def test_a_search_loads_only_what_it_needs(exported: bool, catalog: Path, image_folder: Path, tmp_path: Path) -> None:
    unused = {"lightning_fabric", "pytorch_metric_learning", "scipy", "sklearn", "onnx"}
    model = catalog.parent / "model"
    if exported:
        unused |= {"torch", "timm", "safetensors"}
        embedder = Embedder.load(model)
        model = tmp_path / "model.onnx"
        write_onnx(embedder, model)
        write_metadata(model, describe(embedder))
    printed, modules = loaded_by(["search", catalog, image_folder / "blue" / "0.png", "--model", model])
    assert "blue/0.png" in printed and not unused & modules


def test_results_by_similarity_filter_group_and_minimum(catalog: Path, image_folder: Path) -> None:
    image, other = (str(image_folder / name) for name in ("blue/0.png", "red/3.png"))
    found = search(catalog, image, other, "-k", 1)
    assert [(one["image"], one["results"][0]["path"]) for one in found] == [(image, image), (other, other)]
    everything = search(catalog, image, "-k", 12)[0]["results"]
    assert everything[0].keys() == {"id", "path", "label", "group", "similarity", "box"}
    similarities = [hit["similarity"] for hit in everything]
    assert similarities == sorted(similarities, reverse=True) and similarities[0] == pytest.approx(1, abs=1e-5)
    (found,) = search(catalog, image, "--where", "label != 'blue' and path not like 'red/%'")
    assert len(found["results"]) == 4 and {hit["label"] for hit in found["results"]} == {"green"}
    (found,) = search(catalog, image, "--diverse")
    assert sorted(hit["group"] for hit in found["results"]) == ["0", "1", "2", "3"]
    (found,) = search(catalog, image, "-k", 12, "--min-similarity", everything[5]["similarity"])
    assert found["results"] == everything[:6]
    (found,) = search(catalog, image, "-k", 12, "--min-similarity", "auto")
    assert found["results"] == [hit for hit in everything if hit["similarity"] >= 0.5]
    (found,) = search(catalog, image, "--where", "path != 'blue/0.png'", "--min-similarity", "1")
    assert found["results"] == []


def test_names_that_a_terminal_cannot_show_are_escaped(catalog, image_folder: Path, tmp_path, monkeypatch) -> None:
    image = shutil.copy(image_folder / "blue" / "0.png", tmp_path / "gr\u00fcn-\U0001f426.png")

    def printed(*options: str) -> str:
        out = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(out, encoding="ascii"))
        assert main(["search", str(catalog), str(image), *options]) == 0
        return out.getvalue().decode()

    assert printed("-k", "2").splitlines()[0].endswith(r"gr\xfcn-\U0001f426.png")
    assert len(printed("-k", "2").splitlines()) == 3
    assert json.loads(printed("--json", "-"))[0]["image"] == str(image)


def test_index_again_prune_delete_and_info(catalog: Path, image_folder: Path, tmp_path: Path, capsys) -> None:
    new = ["index", tmp_path / "catalog"]
    first = json_of([*new, image_folder, "--model", catalog.parent / "model"])
    assert (first["images"], first["added"], first["unchanged"]) == (12, 12, 0)
    second = json_of([*new, image_folder / "list.csv", "--delete", "red", "--info"])
    assert (second["relabeled"], second["deleted"], second["info"]["images"]) == (12, 4, 8)  # groups are new
    shutil.copytree(image_folder / "blue", tmp_path / "some" / "blue")
    assert input_error([*new, tmp_path / "some", "--root", tmp_path]).field == "root"
    assert input_error([*new, "--prune", "--info"]).field == "images"
    assert input_error([*new, "--delete", "green/0.png", "gree"]).path == "gree"
    assert input_error([*new, image_folder / "blue", "--prune"]).field == "prune"
    ignore = ["--ignore", "red", "--ignore", "green"]
    third = json_of([*new, image_folder, *ignore, "--prune", "--prune-limit", 4])
    assert (third["images"], third["removed"], third["unchanged"]) == (4, 4, 4)
    removed = re.findall("removing (.*)", capsys.readouterr().out)
    assert sorted(removed) == [f"green/{number}.png" for number in range(4)]
    assert json_of([*new, "--undo", "--info"])["info"]["images"] == 8
    assert input_error(new).field == "images"
    assert input_error(["index", tmp_path / "new", image_folder]).field == "model"


def test_the_model_may_be_moved_but_not_replaced(catalog: Path, image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(catalog.parent / "model", tmp_path / "moved")
    image = str(image_folder / "blue" / "0.png")
    assert search(catalog, image, "--model", tmp_path / "moved")[0]["results"][0]["path"] == image
    Embedder(Encoder("test_vit", embedding_dim=8, image_size=32)).save(other := tmp_path / "other")
    assert input_error(["search", catalog, image, "--model", other]).field == "model"
    assert input_error(["index", catalog, image_folder, "--model", other, "--workers", 0]).field == "model"
    json_of(["embed", other, image_folder, "--out", tmp_path / "embeddings", "--workers", 0])
    assert input_error(["index", catalog, tmp_path / "embeddings"]).field == "folder"
    assert Path(str(input_error(["search", catalog, "nowhere.png"]).path)) == Path("nowhere.png")
    assert main(["search", str(catalog), image, "--where", "label = 'x'"]) == 2


def embeddings_in(catalog: Path) -> tuple[np.ndarray, pd.DataFrame]:
    with Catalog.open(str(catalog)) as opened:
        rows = pd.concat(opened.iterate_rows(["path", "label", "embedding"]), ignore_index=True)
    return np.stack(rows["embedding"].tolist()).astype(np.float64), rows


def test_several_images_as_one_query(catalog: Path, image_folder: Path) -> None:
    images = [image_folder / "blue" / "0.png", image_folder / "red" / "3.png"]
    other = image_folder / "green" / "1.png"
    vectors = Embedder.load(catalog.parent / "model").embed([*images, other]).astype(np.float64)
    stored, rows = embeddings_in(catalog)
    for options, query in (
        (["--together"], vectors[:2].mean(axis=0)),
        (["--together", "--unlike", other], vectors[:2].mean(axis=0) - vectors[2] / 2),
    ):
        similarity = stored @ query / np.linalg.norm(query)
        (found,) = search(catalog, *images, *options, "-k", 5)
        hits = {str(Path(hit["path"]).relative_to(image_folder)): hit["similarity"] for hit in found["results"]}
        expected = pd.Series(similarity, rows["path"])
        assert list(hits.values()) == pytest.approx(expected.nlargest(5).tolist(), abs=1e-5)
        assert hits == pytest.approx(expected[list(hits)].to_dict(), abs=1e-5)


def test_expanded_queries(catalog: Path, image_folder: Path) -> None:
    image = image_folder / "blue" / "0.png"
    query = Embedder.load(catalog.parent / "model").embed(image)[0].astype(np.float64)
    every, rows = embeddings_in(catalog)
    for options, kept in ([], rows["label"] != ""), (["--where", "label != 'blue'"], rows["label"] != "blue"):
        stored = every[kept]
        best = np.argsort(-stored @ query)[:3]
        vector = query + (np.maximum(stored[best] @ query, 0) ** 3) @ stored[best]
        expected = np.sort(stored @ vector / np.linalg.norm(vector))[::-1]
        (found,) = search(catalog, image, "--expand", 3, "-k", 5, *options)
        assert [hit["similarity"] for hit in found["results"]] == pytest.approx(expected[:5], abs=1e-5)
    assert input_error(["search", catalog, image, "--expand", 0]).field == "--expand"
    for options in (["--vote"], ["--min-similarity", "auto"]):  # the threshold is that of plain queries
        assert input_error(["search", catalog, image, "--expand", 3, *options]).field == "min_similarity"


def test_augmented_embeddings_are_searched_by_augmented_queries(catalog: Path, image_folder: Path, tmp_path) -> None:
    model, image, place = catalog.parent / "model", image_folder / "blue" / "0.png", tmp_path / "catalog"
    json_of(["embed", model, image_folder, "--augment", "--out", tmp_path / "embeddings", "--workers", 0])
    assert json_of(["index", place, tmp_path / "embeddings", "--info"])["info"]["model"].endswith("+augment")
    (hit,) = search(place, image, "-k", 1)[0]["results"]
    assert hit["path"] == str(image) and hit["similarity"] == pytest.approx(1, abs=1e-5)
    plain = Embedder.load(model).embed(image)
    with Catalog.open(str(place)) as opened:
        assert opened.search(plain, k=1)[0][0].similarity < 1 - 1e-5
    assert input_error(["search", place, image, "--min-similarity", "auto"]).field == "min_similarity"
    assert json_of(["index", place, image_folder, "--model", model, "--workers", 0])["unchanged"] == 12
    given = ["index", tmp_path / "given", tmp_path / "embeddings", "--model", model, "--migrate-to", model, "--info"]
    assert json_of(given)["info"]["model"].endswith("+augment")  # also after a migration
    shutil.copytree(model, tmp_path / "moved")
    json_of(["index", place, "--model", tmp_path / "moved"])
    assert json_of(["index", place, image_folder, "--delete", "red", "--workers", 0])["deleted"] == 4
    assert json_of(["index", place, image_folder / "red", "--workers", 0])["added"] == 4


def test_changes_of_a_catalog(catalog: Path, image_folder: Path, tmp_path: Path) -> None:
    place = shutil.copytree(catalog, tmp_path / "catalog")
    Embedder(Encoder("test_vit", embedding_dim=4, image_size=32)).save(tmp_path / "new")

    def index(*options: object) -> dict[str, Any]:
        return json_of(["index", place, "--workers", 0, *options])

    assert index("--delete", "blue/0.png", image_folder / "blue" / "1.png", "blue/2.png", "blue/3.png")["deleted"] == 4
    assert index("--migrate-to", tmp_path / "new", "--info")["info"]["dim"] == 4
    assert [change["images_before"] for change in index("--history")["history"]] == [8, 12]
    assert index("--undo", "--info")["info"]["dim"] == 8
    assert index("--undo", "--info")["info"]["images"] == 12
    assert input_error(["index", place, "--undo"]).path == str(place)
    assert input_error(["index", place, "--undo", "--delete", "red"]).field == "undo"

    moved = shutil.copytree(image_folder, tmp_path / "pictures")
    model = shutil.copytree(catalog.parent / "model", tmp_path / "model")
    index("--model", model)
    model = model.rename(tmp_path / "moved")
    assert "moved" in (input_error(["search", place, moved / "red" / "0.png"]).hint or "")
    for options in ([moved, "--root", moved], ["--root", moved / "red"]):
        assert input_error(["index", place, *options, "--model", model]).field == "root"
    index("--root", moved, "--model", model)
    (found,) = json_of(["search", place, moved / "red" / "0.png", "-k", 1])
    assert found["results"][0]["path"] == str(moved / "red" / "0.png")


BAD_NAME = os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize("arguments", [
    ["train", "{}", "--out", "x"], ["train", "photos", "--out", "{}"], ["index", "x", "{}", "--model", "y"],
    ["embed", "y", "{}", "--out", "x"], ["search", "x", "{}"], ["evaluate", "y", "{}"], ["data", "describe", "{}"],
])  # fmt: skip
def test_a_name_that_is_not_utf8_is_an_error_of_one_line(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main([word.replace("{}", BAD_NAME) for word in arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "caf\\udce9" in line
