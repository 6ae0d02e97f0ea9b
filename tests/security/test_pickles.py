"""A file that would run a program when unpickled, in the place of every file of tensors, arrays or values."""

import ast
import json
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hostile import WAYS, Trap, as_npz, as_numpy, as_pickle, as_torch, change_json, is_live, rejected
from small_runs import RECIPE, make_photos, training

from orthoproxy.cli.main import main
from orthoproxy.core.errors import InputError
from orthoproxy.data import cars_table, read_collection, read_image
from orthoproxy.embedding.collections import embed_collection
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.embedding.feature_cache import pooled_features
from orthoproxy.embedding.parquet_store import read_parts
from orthoproxy.models import Encoder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    make_photos(root)
    return root


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(RECIPE.replace("epochs: 3", "epochs: 2").replace("workers: 1", "workers: 0"))
    return path


@pytest.fixture(scope="module")
def _finished(photos: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    assert main(training(recipe, photos, out)) == 0
    return out


@pytest.fixture
def run(_finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(_finished, tmp_path / "run"))


@pytest.fixture(autouse=True)
def marker(tmp_path: Path):
    """What a trap would write."""
    yield tmp_path / "marker"
    assert not (tmp_path / "marker").exists(), "a program was run"


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_traps_do_spring(way: Callable, tmp_path: Path) -> None:
    assert is_live(way, tmp_path)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_initial_weights(way: Callable, photos: Path, recipe: Path, tmp_path: Path, marker: Path, capsys) -> None:
    for suffix in (".pth", ".safetensors"):
        path = tmp_path / f"start{suffix}"
        way({"model": Trap(marker)}, path)
        error = rejected(training(recipe, photos, tmp_path / "out", "--encoder.init_from", path), capsys)
        assert str(path) in error and not (tmp_path / "out").exists()


def test_weights_of_another_run(run: Path, photos: Path, recipe: Path, tmp_path: Path, marker: Path, capsys) -> None:
    as_torch({"model": Trap(marker)}, run / "model" / "model.safetensors")
    error = rejected(training(recipe, photos, tmp_path / "out", "--encoder.init_from", f"run:{run}"), capsys)
    assert "model.safetensors" in error


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_checkpoints(way: Callable, run: Path, photos: Path, recipe: Path, marker: Path, capsys) -> None:
    (run / "report.html").unlink()
    (run / "checkpoints" / "previous.ckpt").unlink(missing_ok=True)
    shutil.rmtree(run / "model")  # as it is when the training has just ended: both checkpoints are read
    state = {"format_version": 2, "encoder": {}, "objective": {}, "optimizer": {}, "state": Trap(marker)}
    for name in ("best.ckpt", "last.ckpt"):
        way(state, run / "checkpoints" / name)
        assert name in rejected(training(recipe, photos, run, "--resume"), capsys)


@pytest.mark.parametrize(
    "name",
    ["model/model.safetensors", "model/proxies.safetensors", "model/config.json", "baseline/model.safetensors"],
)
def test_model_folders(name: str, run: Path, marker: Path, capsys) -> None:
    as_torch({"proxies": Trap(marker)}, run / name)
    assert Path(name).name in rejected(["evaluate", run], capsys)


def test_an_exported_model(photos: Path, tmp_path: Path, marker: Path, capsys) -> None:
    as_pickle(Trap(marker), tmp_path / "model.onnx")
    assert "model.onnx" in rejected(["embed", tmp_path / "model.onnx", photos, "--out", tmp_path / "out"], capsys)


@pytest.mark.parametrize("name", ["config.yaml", "evaluation.json", "metrics.jsonl"])
def test_records_of_a_run(name: str, run: Path, photos: Path, recipe: Path, marker: Path) -> None:
    as_pickle(Trap(marker), run / name)
    code = main(training(recipe, photos, run, "--resume"))
    assert code == 2 or name == "metrics.jsonl"  # of which lines that are not JSON are skipped


@pytest.fixture(scope="module")
def model() -> Embedder:
    return Embedder(Encoder("test_vit", embedding_dim=8, image_size=32))


@pytest.mark.parametrize("way", [as_numpy, as_npz, as_pickle])
def test_cached_features_are_computed_again(
    way: Callable, photos: Path, model: Embedder, tmp_path: Path, marker: Path
) -> None:
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
    trap = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Trap(marker)),
    }
    fields = [pa.field(field.name, field.type, metadata=trap) for field in table.schema]
    pq.write_table(pa.table(table.columns, pa.schema(fields, metadata=table.schema.metadata)), path)
    with suppress(InputError):
        sum(len(rows) for rows, _ in read_parts(embedded))


def test_embeddings_lie_in_their_own_folder(embedded: Path, tmp_path: Path) -> None:
    shutil.copy(embedded / "part-00000.parquet", tmp_path / "part-00000.parquet")
    parts = json.loads((embedded / "_embedding.json").read_text())["parts"]
    change_json(embedded / "_embedding.json", parts=[{**parts[0], "file": "../part-00000.parquet"}, *parts[1:]])
    with pytest.raises(InputError):
        list(read_parts(embedded))


@pytest.mark.parametrize(
    ("name", "read"), [("cars_annos.mat", lambda path: cars_table(path.parent)), ("a.png", read_image)]
)
def test_images_and_their_lists(name: str, read: Callable, tmp_path: Path, marker: Path) -> None:
    (tmp_path / "car_ims").mkdir()
    as_pickle(Trap(marker), tmp_path / name)
    with pytest.raises(InputError):
        read(tmp_path / name)


def test_every_load_of_tensors_or_arrays_is_safe() -> None:
    """What ruff's rules do not know; they forbid pickle, exec and the like."""
    found = 0
    for path in (ROOT / "src").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in ("torch.load", "np.load", "numpy.load"):
                options = {word.arg: ast.unparse(word.value) for word in call.keywords}
                assert options.get("weights_only", "True") == "True" and options.get("allow_pickle", "False") == "False"
                assert ast.unparse(call.func) != "torch.load" or "weights_only" in options, f"{path}:{call.lineno}"
                found += 1
    assert found
