"""Several boxes of one picture in embeddings and catalogs: an image each, found by a part of a picture."""

from pathlib import Path

import numpy as np
import pytest
from command_line import json_of
from PIL import Image

from orthoproxy.catalog.catalog import Catalog, image_id
from orthoproxy.catalog.index import delete_paths, images_to_prune, index_images
from orthoproxy.cli.main import main
from orthoproxy.data import read_collection
from orthoproxy.embedding.collections import embed_collection
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.embedding.parquet_store import read_parts
from orthoproxy.models import Encoder

NAMES = ["shelf.png#xywh=0,0,20,20", "shelf.png#xywh=30,5,20,20", "shelf.png"]
ROWS = "path,label,left,top,right,bottom\nshelf.png,tea,0,0,20,20\nshelf.png,rice,30,5,50,25\nshelf.png,,,,,\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A picture of noise, listed by two boxes and as a whole."""
    pixels = np.random.default_rng(0).integers(0, 256, size=(40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "shelf.png")
    (tmp_path / "list.csv").write_text(ROWS)
    return tmp_path


def test_each_box_is_an_image_of_its_own(tiny_encoder: Encoder, root: Path) -> None:
    embedder, images, picture = (
        Embedder(tiny_encoder),
        read_collection(root / "list.csv"),
        Image.open(root / "shelf.png"),
    )
    embed_collection(embedder, "x", images, root / "out")
    [(rows, embeddings)] = read_parts(root / "out")
    assert rows["path"].tolist() == NAMES and rows["content"].is_unique
    crops = [picture.crop((0, 0, 20, 20)), picture.crop((30, 5, 50, 25)), picture]
    np.testing.assert_allclose(embeddings, embedder.embed(crops), atol=1e-5)
    with Catalog.create(str(root / "catalog"), embedder.embedding_dim, embedder.identity, "", root) as catalog:
        assert index_images(catalog, images, embedder).added == 3
        assert index_images(catalog, images, embedder).unchanged == 3
        assert catalog.get([image_id(name) for name in NAMES])["path"].tolist() == NAMES
        assert catalog.info()["duplicates"] == 0
        assert images_to_prune(catalog, [image_id(NAMES[0])], limit=2)["path"].isin(NAMES[1:]).all()
        assert [delete_paths(catalog, [path]) for path in (NAMES[0], "shelf.png")] == [1, 2]


def test_the_commands_index_boxes_and_search_by_one(tiny_encoder: Encoder, root: Path, capsys) -> None:
    Embedder(tiny_encoder).save(root / "model")
    place = root / "catalog"
    assert main(["index", str(place), str(root / "list.csv"), "--model", str(root / "model"), "--workers", "0"]) == 0
    hit = json_of(["search", place, root / NAMES[0], "-k", 1])[0]["results"][0]
    assert (hit["path"], hit["box"], hit["label"]) == (str(root / "shelf.png"), "0,0,20,20", "tea")
    assert str(root / NAMES[0]) in capsys.readouterr().out
    for bad in ("1.5,0,20,20", "50,30,40,40"):
        assert main(["search", str(place), f"{root / 'shelf.png'}#xywh={bad}"]) == 2
        assert bad in capsys.readouterr().err
