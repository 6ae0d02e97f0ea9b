"""A file that would run a program when unpickled, in the place of every file of tensors, arrays or values."""

import json
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from errors import error_of, rejected
from small_runs import training

from orthoproxy.cli.main import main
from orthoproxy.core.errors import InputError
from orthoproxy.data import cars_table, read_collection, read_image
from orthoproxy.embedding.collections import embed_collection
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.embedding.feature_cache import pooled_features
from orthoproxy.embedding.onnx_embedder import load_model
from orthoproxy.embedding.parquet_store import read_parts
from orthoproxy.models import Encoder


class Trap:
    """Unpickling it would write a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


def as_pickle(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, 2))


def as_numpy(content: object, path: Path) -> None:
    """An array of objects, which NumPy would unpickle if it were allowed to."""
    with path.open("wb") as file:
        np.save(file, np.array([content], dtype=object))


WAYS: dict[str, Callable[[object, Path], None]] = {
    "torch": torch.save,
    "old torch": partial(torch.save, _use_new_zipfile_serialization=False),
    "pickle": as_pickle,
    "array of objects": as_numpy,
}


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture(autouse=True)
def marker(tmp_path: Path):
    """What a trap would write."""
    yield tmp_path / "marker"
    assert not (tmp_path / "marker").exists(), "a program was run"


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_traps_do_spring(way: Callable, tmp_path: Path) -> None:
    way({"model": Trap(tmp_path / "sprung")}, tmp_path / "file")
    with suppress(Exception):  # of what comes after the pickle
        if way is as_numpy:
            np.load(tmp_path / "file", allow_pickle=True)
        else:
            torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_initial_weights(way: Callable, photos: Path, recipe: Path, tmp_path: Path, marker: Path, capsys) -> None:
    for suffix in (".pth", ".safetensors"):
        path = tmp_path / f"start{suffix}"
        way({"model": Trap(marker)}, path)
        error = rejected(training(recipe, photos, tmp_path / "out", "--encoder.init_from", path), capsys)
        assert str(path) in error and not (tmp_path / "out").exists()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_checkpoints(way: Callable, run: Path, photos: Path, recipe: Path, marker: Path, capsys) -> None:
    (run / "report.html").unlink()
    (run / "checkpoints" / "previous.ckpt").unlink(missing_ok=True)
    shutil.rmtree(run / "model")  # as it is when the training has just ended: both checkpoints are read
    state = {"format_version": 2, "encoder": {}, "objective": {}, "optimizer": {}, "state": Trap(marker)}
    for name in ("best.ckpt", "last.ckpt"):
        way(state, run / "checkpoints" / name)
        assert name in rejected(training(recipe, photos, run, "--resume"), capsys)


@pytest.mark.parametrize(("command", "name"), [
    ("evaluate", "model/model.safetensors"), ("evaluate", "model/proxies.safetensors"),
    ("evaluate", "model/config.json"), ("evaluate", "baseline/model.safetensors"),
    ("start from it", "model/model.safetensors"),
    ("resume", "config.yaml"), ("resume", "evaluation.json"), ("resume", "metrics.jsonl"),
])  # fmt: skip
def test_files_of_a_run(command: str, name: str, run: Path, photos, recipe, tmp_path, marker: Path, capsys) -> None:
    way = torch.save if name.endswith(".safetensors") else as_pickle
    way({"proxies": Trap(marker)}, run / name)
    words = {
        "evaluate": ["evaluate", run],
        "start from it": training(recipe, photos, tmp_path / "out", "--encoder.init_from", f"run:{run}"),
        "resume": training(recipe, photos, run, "--resume"),
    }[command]
    if name == "metrics.jsonl":  # of which lines that are not JSON are skipped
        assert main(words) == 0
    else:
        assert Path(name).name in rejected(words, capsys)


@pytest.fixture(scope="module")
def model() -> Embedder:
    return Embedder(Encoder("test_vit", embedding_dim=8, image_size=32))


@pytest.mark.parametrize("way", [as_numpy, as_pickle])
def test_cached_features_are_computed_again(way: Callable, photos: Path, model: Embedder, tmp_path, marker) -> None:
    paths = [str(path) for path in sorted(photos.rglob("*.png"))[:4]]
    first = pooled_features(model, paths, tmp_path / "features")
    (cached,) = (tmp_path / "features").iterdir()
    way(Trap(marker), cached)
    assert pooled_features(model, paths, tmp_path / "features").equal(first)


@pytest.fixture
def embedded(photos: Path, model: Embedder, tmp_path: Path) -> Path:
    embed_collection(model, "nowhere", read_collection(photos), tmp_path / "embedded", part_size=10)
    return tmp_path / "embedded"


def test_an_extension_type_in_embeddings(embedded: Path, marker: Path) -> None:
    """Arrow once unpickled the extension types that a file names (CVE-2023-47248)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = embedded / "part-00000.parquet"
    table = pq.read_table(path)
    trap = {"ARROW:extension:name": b"arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Trap(marker))}
    fields = [pa.field(field.name, field.type, metadata=trap) for field in table.schema]
    pq.write_table(pa.table(table.columns, pa.schema(fields, metadata=table.schema.metadata)), path)
    with suppress(InputError):
        sum(len(rows) for rows, _ in read_parts(embedded))


def test_embeddings_lie_in_their_own_folder(embedded: Path, tmp_path: Path) -> None:
    shutil.copy(embedded / "part-00000.parquet", tmp_path / "part-00000.parquet")
    meta = json.loads((embedded / "_embedding.json").read_text())
    meta["parts"][0]["file"] = "../part-00000.parquet"
    (embedded / "_embedding.json").write_text(json.dumps(meta))
    error_of(read_parts, embedded)


@pytest.mark.parametrize(("name", "read"), [
    ("cars_annos.mat", lambda path: cars_table(path.parent)), ("a.png", read_image), ("model.onnx", load_model),
])  # fmt: skip
def test_images_their_lists_and_exported_models(name: str, read: Callable, tmp_path: Path, marker: Path) -> None:
    (tmp_path / "car_ims").mkdir()
    as_pickle(Trap(marker), tmp_path / name)
    error_of(read, tmp_path / name)
