"""A file that would run a program when it is unpickled, in every place where a file of tensors or arrays is read."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hostile import WAYS, Trap, as_npz, as_numpy, as_pickle, as_torch, change_json, is_live, refused
from PIL import Image
from records import record

from orthoproxy.cli.main import main
from orthoproxy.core.errors import InputError
from orthoproxy.data import cached_images, cars_table, read_collection
from orthoproxy.embedding.collections import embed_collection
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.embedding.feature_cache import pooled_features
from orthoproxy.embedding.parquet_store import read_parts
from orthoproxy.models import Encoder

RECIPE = """
data: {name: folder, test_fraction: 0.4, validation_fraction: 0.34, workers: 0, resize: 32}
encoder: {name: test_vit, weights: none, embedding_dim: 8, image_size: 32}
training: {epochs: 2, batch_size: 6, per_class: 2, log_every: 1, precision: 32-true}
evaluation: {recall_at: [1, 2], draws: 20}
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(10):
        (root / f"class {number}").mkdir()
        for copy in range(3):
            pixels = generator.integers(0, 256, size=(36, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"class {number}" / f"{copy}.png")
    return root


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def _finished(photos: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    assert main(training(recipe, photos, out)) == 0
    return out


@pytest.fixture
def run(_finished: Path, tmp_path: Path) -> Path:
    """A finished run, to be spoilt."""
    return Path(shutil.copytree(_finished, tmp_path / "run"))


def training(recipe: Path, photos: Path, out: Path, *more: object) -> list[str]:
    return ["train", "--config", str(recipe), "--data.root", str(photos), "--out", str(out), *map(str, more)]


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What a trap would write."""
    return tmp_path / "marker"


def kept_out(marker: Path, where: str) -> None:
    record("nothing let in", f"a hostile pickle as {where}", "a program was run" if marker.exists() else "nothing")
    assert not marker.exists()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_traps_do_spring(way: Callable, tmp_path: Path) -> None:
    assert is_live(way, tmp_path)


@pytest.mark.parametrize("ending", [".pth", ".pt", ".safetensors", ".bin"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_as_starting_weights(
    way: Callable, ending: str, photos: Path, recipe: Path, tmp_path: Path, marker: Path, capsys
) -> None:
    path = tmp_path / f"start{ending}"
    way({"model": Trap(marker)}, path)
    said = refused(training(recipe, photos, tmp_path / "out", "--encoder.weights", path), capsys)
    assert "encoder.weights: cannot read" in said and str(path) in said and "weights_only" not in said
    assert not (tmp_path / "out").exists()
    kept_out(marker, "starting weights")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_as_another_run_to_start_from(
    name: str, run: Path, photos: Path, recipe: Path, tmp_path: Path, marker: Path, capsys
) -> None:
    as_torch({"model": Trap(marker)}, run / "model" / name)
    said = refused(training(recipe, photos, tmp_path / "out", "--encoder.weights", f"run:{run}"), capsys)
    assert name in said
    kept_out(marker, "the run to start from")


@pytest.mark.parametrize("name", ["last", "best"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_as_a_checkpoint_to_resume_from(
    way: Callable, name: str, run: Path, photos: Path, recipe: Path, marker: Path, capsys
) -> None:
    for path in (run / "report.html", run / "checkpoints" / "previous.ckpt"):
        path.unlink(missing_ok=True)
    shutil.rmtree(run / "model")  # as it is when the training has just ended: both checkpoints are read
    state = {"format_version": 1, "encoder": {}, "objective": {}, "optimizer": {}, "position": Trap(marker)}
    way(state, run / "checkpoints" / f"{name}.ckpt")
    said = refused(training(recipe, photos, run, "--resume"), capsys)
    assert f"{name}.ckpt" in said and "weights_only" not in said
    kept_out(marker, "a checkpoint")


@pytest.mark.parametrize("name", ["model/model.safetensors", "model/proxies.safetensors", "model/config.json"])
def test_as_a_model_to_judge(name: str, run: Path, marker: Path, capsys) -> None:
    as_torch({"proxies": Trap(marker)}, run / name)
    assert Path(name).name in refused(["evaluate", run], capsys)
    kept_out(marker, "a model")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_as_the_untrained_model_beside_it(name: str, run: Path, marker: Path, capsys) -> None:
    as_torch(Trap(marker), run / "baseline" / name)
    refused(["evaluate", run], capsys)
    kept_out(marker, "the untrained model")


def test_as_an_exported_model(photos: Path, tmp_path: Path, marker: Path, capsys) -> None:
    as_pickle(Trap(marker), tmp_path / "model.onnx")
    said = refused(["embed", tmp_path / "model.onnx", photos, "--out", tmp_path / "out"], capsys)
    assert "model.onnx: cannot be read as ONNX" in said
    kept_out(marker, "an exported model")


@pytest.mark.parametrize("name", ["config.yaml", "evaluation.json", "metrics.jsonl"])
def test_as_what_a_run_wrote_down(name: str, run: Path, photos: Path, recipe: Path, marker: Path, capsys) -> None:
    as_pickle(Trap(marker), run / name)
    code = main(training(recipe, photos, run, "--resume"))
    assert code == 2 or name == "metrics.jsonl"  # of which lines that are no JSON are left out
    assert "Traceback" not in capsys.readouterr().err
    kept_out(marker, "a record of a run")


@pytest.fixture(scope="module")
def model() -> Embedder:
    return Embedder(Encoder("test_vit", embedding_dim=8, image_size=32))


@pytest.mark.parametrize("way", [as_numpy, as_npz, as_pickle])
def test_as_kept_features_which_are_made_anew(
    way: Callable, photos: Path, model: Embedder, tmp_path: Path, marker: Path
) -> None:
    paths = [str(path) for path in sorted(photos.rglob("*.png"))[:4]]
    first = pooled_features(model, paths, tmp_path / "features")
    (kept,) = (tmp_path / "features").iterdir()
    way(Trap(marker), kept)
    assert pooled_features(model, paths, tmp_path / "features").equal(first)
    kept_out(marker, "kept features")


@pytest.mark.parametrize("way", [as_numpy, as_npz, as_pickle])
def test_as_the_index_of_a_cache_which_is_filled_anew(
    way: Callable, photos: Path, tmp_path: Path, marker: Path
) -> None:
    paths = sorted(photos.rglob("*.png"))[:4]
    first = cached_images(paths, tmp_path / "cache", 20)
    (index,) = (tmp_path / "cache").rglob("index.npy")
    way(Trap(marker), index)
    again = cached_images(paths, tmp_path / "cache", 20)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
    kept_out(marker, "a cache")


@pytest.fixture
def embedded(photos: Path, model: Embedder, tmp_path: Path) -> Path:
    embed_collection(model, "nowhere", read_collection(photos), tmp_path / "embedded", part_size=10)
    return tmp_path / "embedded"


def test_as_a_part_of_embeddings(embedded: Path, tmp_path: Path, marker: Path, capsys) -> None:
    as_pickle(Trap(marker), embedded / "part-00001.parquet")
    said = refused(["index", tmp_path / "catalog", embedded], capsys)
    assert "part-00001.parquet" in said
    kept_out(marker, "a part of embeddings")


def test_as_a_type_in_a_part_of_embeddings(embedded: Path, marker: Path) -> None:
    """Arrow once unpickled the extension types that a file names (CVE-2023-47248)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = embedded / "part-00000.parquet"
    table = pq.read_table(path)
    trap = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Trap(marker)),
    }
    fields = [pa.field(field.name, field.type, metadata=trap) for field in table.schema]
    pq.write_table(pa.table(table.columns, pa.schema(fields, metadata=table.schema.metadata)), path)
    with suppress(InputError):
        sum(len(rows) for rows, _ in read_parts(embedded))
    kept_out(marker, "a type in a part of embeddings")


def test_parts_lie_in_their_own_folder(embedded: Path, tmp_path: Path) -> None:
    shutil.copy(embedded / "part-00000.parquet", tmp_path / "part-00000.parquet")
    parts = json.loads((embedded / "embedding.json").read_text())["parts"]
    change_json(embedded / "embedding.json", parts=[{**parts[0], "file": "../part-00000.parquet"}, *parts[1:]])
    with pytest.raises(InputError, match="damaged"):
        list(read_parts(embedded))


def test_as_the_lists_of_a_data_set(tmp_path: Path, marker: Path) -> None:
    (tmp_path / "car_ims").mkdir()
    as_pickle(Trap(marker), tmp_path / "cars_annos.mat")
    with pytest.raises(InputError, match=r"cars_annos\.mat"):
        cars_table(tmp_path)
    kept_out(marker, "the lists of a data set")


@pytest.mark.parametrize("name", ["catalog.json", "milvus.db"])
def test_as_a_catalog(name: str, tmp_path: Path, marker: Path, photos: Path, capsys) -> None:
    folder = tmp_path / "catalog"
    folder.mkdir()
    (folder / "catalog.json").write_text('{"format_version": 1}')
    as_pickle(Trap(marker), folder / name)
    refused(["search", folder, photos / "class 0" / "0.png"], capsys)
    kept_out(marker, "a catalog")
