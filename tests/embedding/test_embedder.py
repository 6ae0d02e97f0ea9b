"""A model as a thing to use: what goes in, what comes out, and the folder it is saved in."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from errors import error_of
from huggingface_hub import ModelCard
from PIL import Image

from orthoproxy.core.errors import InputError
from orthoproxy.data import evaluation_transform, read_image
from orthoproxy.embedding.embedder import FILES, Embedder, write_threshold
from orthoproxy.models import Encoder

VIT = "test_vit"  # timm's own model for tests: quick to load


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(VIT, embedding_dim=8, image_size=32)


@pytest.fixture
def embedder(encoder: Encoder) -> Embedder:
    return Embedder(encoder, resize=36, classes=["ä", "b", "c"], proxies=torch.randn(3, 8))


def test_files_pictures_arrays_and_pixels_give_the_same_embeddings(embedder: Embedder, paths: list[Path]) -> None:
    files = embedder.embed(paths)
    assert files.shape == (12, 8) and files.dtype == np.float32
    assert np.linalg.norm(files, axis=1) == pytest.approx(np.ones(12), abs=1e-5)
    assert np.ptp(files, axis=0).max() > 1e-3  # the pictures do differ
    pixels = torch.from_numpy(np.stack([evaluation_transform(32, 36)(read_image(path)) for path in paths]))
    pictures = [Image.open(path).convert("RGBA") for path in paths]
    arrays = [np.asarray(Image.open(path)) for path in paths]
    for given in ([str(path) for path in paths], pictures, arrays, np.stack(arrays), pixels):
        np.testing.assert_array_equal(embedder.embed(given), files)
        np.testing.assert_array_equal(embedder.embed_distributed(given), files)
        assert embedder.embed(given[:0]).shape == (0, 8)
        for one in (given[0], given[:1]):
            np.testing.assert_allclose(embedder.embed(one), files[:1], atol=1e-6)
    np.testing.assert_allclose(embedder.embed(pixels / 255), files, atol=1e-5)
    for batch_size, workers in ((1, 0), (5, 0), (5, 2)):
        np.testing.assert_allclose(embedder.embed(paths, batch_size, workers), files, atol=1e-5)


UNFIT = {
    "0 to 255 in floating point": lambda x: x * 255, "normalized": lambda x: (x - 0.485) / 0.229,
    "-1 to 1": lambda x: 2 * x - 1, "not finite": lambda x: torch.where(x == x.max(), torch.nan, x),
    "infinite features": lambda x: torch.full((2, 64), torch.inf), "half size": lambda x: x[..., ::2, ::2],
    "one channel": lambda x: x[:, :1], "features of another model": lambda x: x[:, 0, 0],
    "channels last": lambda x: x.permute(0, 2, 3, 1), "float array": lambda x: x[0].permute(1, 2, 0).numpy(),
    "gray array": lambda x: (255 * x[0, 0].numpy()).astype(np.uint8), "tensors": lambda x: list(x), "nothing": int,
}  # fmt: skip


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", UNFIT)
def test_images_that_the_model_would_misread_are_errors(kind: str, embedder: Embedder, paths: list[Path]) -> None:
    pixels = torch.from_numpy(np.stack([evaluation_transform(32, 36)(read_image(path)) for path in paths[::4]])) / 255
    ran = []
    embedder.encoder.register_forward_pre_hook(lambda *_: ran.append(1))
    given = 3 if kind == "nothing" else UNFIT[kind](pixels)
    assert error_of(embedder.embed, given).field == "images" and not ran
    embedder.embed(1.1 * pixels - 0.05)  # what bicubic interpolation overshoots
    for option, value in {"batch_size": 0, "workers": -1}.items():
        assert error_of(embedder.embed, paths, **{option: value}).field == option


def test_embedding_leaves_training_mode_and_random_state_alone(paths: list[Path]) -> None:
    encoder = Encoder(VIT, embedding_dim=8, image_size=32, drop_path=0.5)
    embedder = Embedder(encoder)
    expected = embedder.embed(paths)
    encoder.train()
    encoder.projection.eval()
    modes, state = [module.training for module in encoder.modules()], torch.get_rng_state()
    for workers in (0, 1):
        np.testing.assert_allclose(embedder.embed(paths, workers=workers), expected, atol=1e-6)
    assert [module.training for module in encoder.modules()] == modes and True in modes and False in modes
    assert torch.equal(torch.get_rng_state(), state)


def test_features_come_batch_by_batch_without_gradients(embedder: Embedder, paths: list[Path]) -> None:
    pixels = torch.from_numpy(np.stack([evaluation_transform(32, 36)(read_image(path)) for path in paths]))
    with torch.inference_mode():
        features = embedder.encoder.features(pixels)
    for images in (paths, features):
        np.testing.assert_allclose(embedder.embed(images, batch_size=5), embedder.embed(pixels), atol=1e-5)
        blocks = list(embedder.iterate_features(images, batch_size=5))
        assert [len(rows) for rows in blocks] == [5, 5, 2]
        rows = torch.cat(blocks)
        torch.testing.assert_close(rows, features, atol=1e-5, rtol=0)
        assert not rows.requires_grad
    sums = torch.zeros(features.shape[1], requires_grad=True)
    for rows in embedder.iterate_features(paths, batch_size=5):
        sums = sums + rows.sum(0)  # the caller's own gradient mode is untouched between batches
    assert sums.requires_grad
    blocks = embedder.iterate_features([paths[0], "missing.png"], batch_size=1)
    assert len(next(blocks)) == 1  # the second is not read yet: memory holds one batch


def test_mixed_precision_gives_float32_unit_rows_near_those_of_float32(embedder: Embedder, paths: list[Path]) -> None:
    single = embedder.embed(paths)
    mixed = embedder.embed(paths, precision="bf16-mixed")
    assert mixed.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(mixed, axis=1), 1, atol=1e-6)
    assert not np.array_equal(mixed, single)
    assert (mixed * single).sum(axis=1).min() > 0.999
    assert error_of(embedder.embed, paths, precision="8-bit").field == "precision"


@pytest.mark.parametrize("given", ["run", "run/model", "elsewhere"])
def test_a_saved_model_embeds_bit_for_bit_the_same(given: str, embedder: Embedder, paths: list[Path], tmp_path) -> None:
    embedder.save(tmp_path / ("elsewhere" if given == "elsewhere" else "run/model"), card="# A model\n")
    loaded = Embedder.load(tmp_path / given)
    np.testing.assert_array_equal(loaded.embed(paths), embedder.embed(paths))
    assert torch.equal(loaded.proxies, embedder.proxies)
    assert loaded.classes == ["ä", "b", "c"]
    assert loaded.resize == 36 and loaded.encoder.image_size == 32
    assert loaded.identity == embedder.identity and not loaded.encoder.training


def test_the_pooling_is_saved_and_belongs_to_the_identity(paths: list[Path], tmp_path: Path) -> None:
    averaged = Embedder(Encoder("deit_tiny_patch16_224", 8, image_size=32, pooling="avg"))
    averaged.save(tmp_path)
    loaded = Embedder.load(tmp_path)
    np.testing.assert_array_equal(loaded.embed(paths), averaged.embed(paths))
    rewrite_config(tmp_path, pooling=None)
    assert Embedder.load(tmp_path).identity != loaded.identity == averaged.identity


def test_a_model_without_projection_replaces_one_with_proxies(embedder: Embedder, paths: list[Path], tmp_path) -> None:
    embedder.save(tmp_path / "model")
    embedder = Embedder(Encoder("deit_tiny_distilled_patch16_224", image_size=48))
    embedder.save(tmp_path / "model")
    loaded = Embedder.load(tmp_path)
    np.testing.assert_array_equal(loaded.embed(paths), embedder.embed(paths))
    assert loaded.proxies is None and loaded.classes == [] and loaded.resize is None
    assert isinstance(loaded.encoder.projection, torch.nn.Identity)
    assert not (tmp_path / "model" / "proxies.safetensors").exists()


def rewrite_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(("field", "value"), [
    ("format_version", 1), ("image_size", 0), ("image_size", 99_999), ("embedding_dim", 10**9), ("resize", "crop"),
    ("encoder", None), ("threshold", float("nan")),
])  # fmt: skip
def test_an_invalid_field_of_config_json_is_named(field: str, value: object, embedder: Embedder, tmp_path) -> None:
    embedder.save(tmp_path)
    rewrite_config(tmp_path, **{field: value})
    error = error_of(Embedder.load, tmp_path)
    assert error.field is not None and error.field.startswith(field)
    assert error.path == tmp_path / "config.json" and error.hint


@pytest.mark.parametrize("change", [{"embedding_dim": 16}, {"encoder": "test_vit2"}, {"image_size": 64}])
def test_weights_that_do_not_match_config_json(change: dict, embedder: Embedder, tmp_path: Path) -> None:
    embedder.save(tmp_path)
    rewrite_config(tmp_path, **change)
    assert error_of(Embedder.load, tmp_path).path == tmp_path


@pytest.mark.parametrize("inside", [".", "run", "run/model"])
def test_the_baseline_beside_a_runs_model_is_found_from_any_folder(inside, embedder, tmp_path, monkeypatch) -> None:
    run = tmp_path / "run"
    embedder.save(run / "model")
    monkeypatch.chdir(tmp_path / inside)
    for place in (run, run / "model"):
        assert Embedder.load(os.path.relpath(place)).baseline_folder is None
    embedder.save(run / "baseline")
    for place in (run, run / "model"):
        assert Embedder.load(os.path.relpath(place)).baseline_folder == run / "baseline"
    assert Embedder.load(run / "baseline").baseline_folder is None  # it is not its own baseline


def test_the_weights_are_hashed_once(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = embedder.identity
    monkeypatch.setattr("hashlib.sha256", None)
    assert embedder.identity == identity


def test_the_identity_depends_on_weights_and_transform(embedder: Embedder, tmp_path: Path) -> None:
    embedder.save(tmp_path)
    again, identities = Embedder.load(tmp_path), {}
    assert again.identity == embedder.identity and len(embedder.identity) == 16
    for resize in (36, 37, "stretch", None):
        rewrite_config(tmp_path, resize=resize, threshold=0.5)  # the threshold does not change embeddings
        identities[resize] = Embedder.load(tmp_path).identity
    assert identities[36] == embedder.identity
    assert identities[None] == identities[37]  # 37 is the default at 32 pixels
    assert len({*identities.values()}) == 3
    with torch.no_grad():
        again.encoder.projection.bias[0] += 1e-3
    assert again.identity != embedder.identity
    again.encoder.load_state_dict(embedder.encoder.state_dict())
    assert again.identity == embedder.identity


def test_threshold_and_card_are_saved(embedder: Embedder, tmp_path: Path) -> None:
    embedder.threshold, embedder.false_match_rate = 0.625, 0.01
    embedder.save(tmp_path / "model", card="# Größe\n")
    loaded = Embedder.load(tmp_path)
    assert (loaded.threshold, loaded.false_match_rate, loaded.card) == (0.625, 0.01, "# Größe\n")
    loaded.save(tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy").iterdir()} == set(FILES)
    assert Embedder.load(tmp_path / "copy").card == loaded.card
    write_threshold(tmp_path / "copy", None, 0.01)
    loaded = Embedder.load(tmp_path / "copy")
    assert (loaded.threshold, loaded.false_match_rate) == (None, None)


@pytest.fixture
def hub(embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """A hub with one model, ann/birds, in place of the real one; what it is asked for is kept."""
    embedder.save(tmp_path / "hub", card="# Birds\n")
    asked: list[dict] = []

    def download(name: str, **options: object) -> str:
        asked.append({"name": name, **options})
        if name != "ann/birds":
            raise OSError(f"404 Client Error: Repository Not Found for {name}")
        return str(tmp_path / "hub")

    monkeypatch.setattr("orthoproxy.embedding.embedder.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    return asked


def test_a_name_on_the_hub_is_downloaded_unless_there_is_a_local_folder(hub, embedder, encoder, paths, tmp_path):
    loaded = Embedder.load("ann/birds")
    np.testing.assert_array_equal(loaded.embed(paths), embedder.embed(paths))
    assert loaded.card == "# Birds\n" and loaded.baseline_folder is None
    assert [request["name"] for request in hub] == ["ann/birds"]
    assert set(hub[0]["allow_patterns"]) == set(FILES)  # no file that could run code
    with pytest.raises(InputError, match="Repository Not Found") as error:
        Embedder.load("ann/fish")
    assert error.value.hint
    Embedder(encoder, classes=["here"]).save(tmp_path / "ann" / "birds")
    assert Embedder.load("ann/birds").classes == ["here"] and len(hub) == 2  # a local folder has priority


@pytest.mark.parametrize("name", ["nowhere", "./ann/birds", "/ann/birds", "a/b/c", "local/birds", "~/birds", "-a/b"])
def test_what_is_no_name_on_the_hub_asks_no_hub(name: str, hub: list[dict], tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    assert error_of(Embedder.load, name).path == name and hub == []


def test_without_a_network_the_hub_client_does_not_retry(monkeypatch, tmp_path, embedder: Embedder) -> None:
    """With the hub's own client and an empty cache."""
    lookups: list[object] = []

    def no_address(*arguments: object) -> None:
        lookups.append(arguments)
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", no_address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="ann/birds"):
        Embedder.load("ann/birds")
    assert len(lookups) == 1


def test_huggingface_hubs_own_ways_of_saving_and_loading(embedder, tmp_path, paths, hub) -> None:
    embedder.threshold = 0.5
    embedder.save_pretrained(tmp_path / "saved")
    loaded = Embedder.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(loaded.embed(paths), embedder.embed(paths))
    assert (loaded.resize, loaded.classes, loaded.threshold) == (36, ["ä", "b", "c"], 0.5)
    card = ModelCard((tmp_path / "saved" / "README.md").read_text())  # the mixin's own, where the model has none
    assert card.data.library_name == "orthoproxy"
    loaded.save(tmp_path / "run" / "model", card="# Mine\n")
    Embedder.from_pretrained(tmp_path / "run", device="cpu").save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == "# Mine\n"
