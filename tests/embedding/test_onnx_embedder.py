"""An exported model as a thing to use: the same results as the original, whatever goes in."""

import gc
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from errors import error_of
from PIL import ExifTags, Image

from orthoproxy.core.device import choose_device
from orthoproxy.embedding.augmentation import augmented
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.embedding.onnx_embedder import INPUT, OnnxEmbedder, load_model, make_session
from orthoproxy.export.onnx_export import describe, write_onnx
from orthoproxy.models import Encoder


def exported(model: Embedder, path: Path) -> Path:
    write_onnx(model, path)
    return with_metadata(path, model, path)


def with_metadata(file: Path, model: Embedder, path: Path, **changes: object) -> Path:
    content = onnx.load(file)
    onnx.helper.set_model_props(content, {**describe(model).to_properties(), **changes})
    onnx.save(content, path)
    return path


@pytest.fixture(scope="module")
def model() -> Embedder:
    torch.manual_seed(0)
    return Embedder(Encoder("test_vit", embedding_dim=8, image_size=32), resize=36)


@pytest.fixture(scope="module")
def file(model: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(model, tmp_path_factory.mktemp("onnx") / "model.onnx")


def test_files_pictures_and_pixels_give_the_same_embeddings(file: Path, model: Embedder, paths: list[Path]) -> None:
    ours = OnnxEmbedder(file)
    files = ours.embed(paths)
    assert files.shape == (12, 8) and files.dtype == np.float32 and np.ptp(files, axis=0).max() > 1e-3
    np.testing.assert_allclose(np.linalg.norm(files, axis=1), 1, atol=1e-5)
    for batch_size in (1, 5):
        np.testing.assert_allclose(ours.embed(paths, batch_size), model.embed(paths), atol=1e-5)
    pixels = torch.from_numpy(np.stack([model.transform(Image.open(path)) for path in paths]))
    for given in ([Image.open(path) for path in paths], pixels, pixels / 255):
        np.testing.assert_array_equal(ours.embed(given), files)
    assert ours.embed([]).shape == (0, 8)
    np.testing.assert_array_equal(ours.embed(str(paths[0])), files[:1])
    for unfit in (pixels.float(), pixels[..., ::2, ::2], torch.rand(2, 8)):
        assert error_of(ours.embed, unfit).field == "images"


def test_augmented_embeddings_are_the_mean_over_views(file: Path, model: Embedder, paths: list[Path]) -> None:
    pixels = torch.from_numpy(np.stack([model.transform(Image.open(path)) for path in paths]))
    closer = F.interpolate(pixels[:, :, 2:30, 2:30] / 255, 32, mode="bicubic").clamp(0, 1)
    for plain in (model, OnnxEmbedder(file)):
        plain.threshold = 0.5
        views = [plain.embed(view) for view in (pixels, pixels.flip(3), closer, closer.flip(3))]
        mean = np.mean(views, axis=0, dtype=np.float64)
        found = augmented(plain)
        expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        for given in (paths, pixels, pixels / 255):
            np.testing.assert_allclose(found.embed(given), expected, atol=1e-6)
        assert np.abs(found.embed(paths) - views[0]).max() > 1e-3
        assert (found.identity, found.threshold) == (f"{model.identity}+augment", None)
        assert (plain.identity, plain.threshold) == (model.identity, 0.5)
    assert load_model(file, identity=found.identity).identity == found.identity


def test_a_model_without_projection_and_with_another_resize(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = Embedder(Encoder("test_vit", image_size=32), resize="stretch")
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=(50, 90, 3), dtype=np.uint8))
    ours = OnnxEmbedder(exported(model, tmp_path / "model.onnx"))
    np.testing.assert_allclose(ours.embed([image, image.rotate(90)]), model.embed([image, image.rotate(90)]), atol=1e-5)
    assert (ours.image_size, ours.embedding_dim, ours.resize) == (32, model.embedding_dim, "stretch")
    assert describe(Embedder(model.encoder)).resize == 37  # the default at 32 pixels


def test_the_documented_lines_read_images_of_every_kind(file: Path, model, tmp_path: Path, monkeypatch) -> None:
    y, x = np.mgrid[:40, :60]
    pixels = np.stack([4 * x, 6 * y, 255 * (x > y)], axis=2).astype(np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels).save(tmp_path / "phone.jpg", exif=exif)
    transparent = np.dstack([pixels, np.where(x < 30, 0, 160).astype(np.uint8)])
    Image.fromarray(transparent).save(tmp_path / "transparent.png")
    Image.fromarray((1000 * x + 100 * y).astype(np.uint16)).save(tmp_path / "16 bits.png")
    files = sorted(tmp_path.iterdir())
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "birds.onnx").symlink_to(file)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "guide" / "export.md").read_text(encoding="utf-8")
    [lines] = [block for block in page.split("```") if block.startswith("python\nimport json\n")]
    names: dict[str, Any] = {"files": files, "Path": Path, "OnnxEmbedder": OnnxEmbedder}
    exec(lines.removeprefix("python\n"), names)
    assert (names["embeddings"] * model.embed(files)).sum(axis=1).min() > 0.999


def test_files_that_are_not_exported_models(file: Path, model: Embedder, tmp_path: Path) -> None:
    assert error_of(OnnxEmbedder, tmp_path / "nowhere.onnx").path == tmp_path / "nowhere.onnx"
    for name, content in (("garbage.onnx", b"no model at all"), ("half.onnx", file.read_bytes()[:5000])):
        (tmp_path / name).write_bytes(content)
        assert error_of(OnnxEmbedder, tmp_path / name).path == tmp_path / name
    for field, value in (("format_version", "1"), ("image_size", "0")):
        error = error_of(OnnxEmbedder, with_metadata(file, model, tmp_path / "other.onnx", **{field: value}))
        assert (error.path, error.field) == (tmp_path / "other.onnx", field) and error.hint
    content = onnx.load(file)
    onnx.helper.set_model_props(content, {"author": "somebody"})
    onnx.save(content, tmp_path / "foreign.onnx")
    assert error_of(OnnxEmbedder, tmp_path / "foreign.onnx").field == "format_version"
    assert error_of(OnnxEmbedder, file, "toaster").field == "device"
    assert error_of(choose_device, "toaster").field == "device"


def test_without_onnxruntime_it_says_what_to_install(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "orthoproxy[onnx]" in (error_of(OnnxEmbedder, file).hint or "")


def test_a_fork_does_not_wait_for_the_threads_of_a_session_left_over(file: Path, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    session = make_session(file)
    session.run(None, {INPUT: np.zeros((8, 3, 32, 32), np.uint8)})
    time.sleep(1)  # its threads sleep now, too
    left: list[object] = [session]
    left.append(left)  # a cycle, which only the garbage collector can free
    gc.disable()
    try:
        del left, session
        child = multiprocessing.get_context("fork").Process(target=gc.collect)
        child.start()
        child.join(20)
        code = child.exitcode
        child.kill()
    finally:
        gc.enable()
    assert code == 0
