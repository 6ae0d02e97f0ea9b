"""A model as a thing to use: what goes in, what comes out, and the folder it is saved in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, ModelCard, RepoUrl
from PIL import Image

from orthoproxy.cli.main import main
from orthoproxy.core.errors import InputError
from orthoproxy.data import evaluation_transform, read_image
from orthoproxy.embedding.embedder import Embedder, write_threshold
from orthoproxy.models import Encoder

VIT = "test_vit"  # timm's own model for tests: quick to load


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(VIT, embedding_dim=8, image_size=32)


@pytest.fixture
def embedder(encoder: Encoder) -> Embedder:
    return Embedder(encoder, resize=36, classes=["ä", "b", "c"], proxies=torch.randn(3, 8))


@pytest.fixture
def paths(image_folder: Path) -> list[Path]:
    return sorted(image_folder.rglob("*.png"))


def test_files_pictures_and_pixels_give_the_same_embeddings(embedder: Embedder, paths: list[Path]) -> None:
    files = embedder.embed(paths)
    assert files.shape == (12, 8) and files.dtype == np.float32
    assert np.linalg.norm(files, axis=1) == pytest.approx(np.ones(12), abs=1e-5)
    pixels = torch.stack([evaluation_transform(32, 36)(read_image(path)) for path in paths])
    for given in ([str(path) for path in paths], [Image.open(path) for path in paths], pixels):
        np.testing.assert_array_equal(embedder.embed(given), files)
    np.testing.assert_allclose(embedder.embed(pixels / 255), files, atol=1e-5)
    assert np.ptp(files, axis=0).max() > 1e-3  # the pictures do differ


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (5, 0), (5, 2)])
def test_batches_and_workers_change_nothing_but_rounding(
    batch_size: int, workers: int, embedder: Embedder, paths: list[Path]
) -> None:
    np.testing.assert_allclose(embedder.embed(paths, batch_size, workers), embedder.embed(paths), atol=1e-5)


@pytest.mark.parametrize("given", [[], torch.empty(0, 3, 32, 32)], ids=["list", "tensor"])
def test_no_images_give_no_rows(given: list | torch.Tensor, embedder: Embedder) -> None:
    assert embedder.embed(given).shape == (0, 8)


def test_pictures_of_any_mode(embedder: Embedder) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=(40, 50, 3), dtype=np.uint8))
    grey = image.convert("L")
    together = embedder.embed([grey, grey.convert("RGB"), grey.convert("RGBA"), image])
    np.testing.assert_array_equal(together[0], together[1])
    np.testing.assert_array_equal(together[0], together[2])
    assert not np.array_equal(together[0], together[3])


def test_progress_is_shown_when_named(embedder: Embedder, paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    monkeypatch.setattr("orthoproxy.core.progress.Progress.say", lambda progress, line: said.append(line))
    monkeypatch.setattr("orthoproxy.core.progress.time.monotonic", iter(range(0, 10_000, 11)).__next__)
    embedder.embed(paths, batch_size=5)
    assert said == []
    embedder.embed(paths, batch_size=5, what="files")
    assert len(said) == 3 and said[0].startswith(f"files 5/{len(paths)}") and said[0].endswith("images/s")


def test_an_unreadable_file_is_named(embedder: Embedder, paths: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    for workers in (0, 1):
        with pytest.raises(InputError, match=r"cannot read the image .*broken\.png"):
            embedder.embed([*paths, broken], workers=workers)


@pytest.mark.parametrize("given", ["run", "run/model", "elsewhere"])
def test_a_saved_model_embeds_bit_for_bit_the_same(
    given: str, embedder: Embedder, paths: list[Path], tmp_path: Path
) -> None:
    embedder.save(tmp_path / ("elsewhere" if given == "elsewhere" else "run/model"), card="# A model\n")
    loaded = Embedder.load(tmp_path / given)
    np.testing.assert_array_equal(loaded.embed(paths), embedder.embed(paths))
    assert torch.equal(loaded.proxies, embedder.proxies)
    assert loaded.classes == ["ä", "b", "c"]
    assert loaded.resize == 36 and loaded.encoder.image_size == 32
    saved, given_back = embedder.encoder.state_dict(), loaded.encoder.state_dict()
    assert list(saved) == list(given_back)
    assert all(torch.equal(saved[name], given_back[name]) for name in saved)
    assert not loaded.encoder.training


def test_a_model_without_projection_proxies_or_classes(paths: list[Path], tmp_path: Path) -> None:
    embedder = Embedder(Encoder("deit_tiny_distilled_patch16_224", image_size=48))
    embedder.save(tmp_path / "model")
    loaded = Embedder.load(tmp_path)
    np.testing.assert_array_equal(loaded.embed(paths), embedder.embed(paths))
    assert loaded.proxies is None and loaded.classes == [] and loaded.resize is None
    assert isinstance(loaded.encoder.projection, torch.nn.Identity)
    assert not (tmp_path / "model" / "proxies.safetensors").exists()


def test_saving_over_a_model_leaves_nothing_of_the_old_one(
    embedder: Embedder, tmp_path: Path, encoder: Encoder
) -> None:
    embedder.save(tmp_path)
    Embedder(encoder).save(tmp_path)
    loaded = Embedder.load(tmp_path)
    assert loaded.classes == []
    assert loaded.proxies is None


def test_the_folder_is_what_the_documentation_says(embedder: Embedder, tmp_path: Path) -> None:
    embedder.save(tmp_path / "model", card="# Größe\n")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "config.json", "model.safetensors", "proxies.safetensors", "classes.json", "README.md",
    }  # fmt: skip
    assert (tmp_path / "model" / "README.md").read_text(encoding="utf-8") == "# Größe\n"
    assert json.loads((tmp_path / "model" / "config.json").read_text()) == {
        "format_version": 1, "encoder": VIT, "embedding_dim": 8, "image_size": 32, "resize": 36,
    }  # fmt: skip


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_an_unknown_format_version_is_refused_by_name(version: object, embedder: Embedder, tmp_path: Path) -> None:
    embedder.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "format_version": version}))
    with pytest.raises(InputError, match=rf"config\.json: format_version {version!r} is unknown.*reads version 1"):
        Embedder.load(tmp_path)


def test_a_folder_without_model_says_what_was_looked_for(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=rf"no model in {folder}: neither config\.json nor model/config\.json"):
            Embedder.load(folder)


@pytest.mark.parametrize("file", ["config.json", "classes.json", "model.safetensors", "proxies.safetensors"])
def test_a_broken_file_is_named(file: str, embedder: Embedder, tmp_path: Path) -> None:
    embedder.save(tmp_path)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:5])
    with pytest.raises(InputError, match=file):
        Embedder.load(tmp_path)


@pytest.mark.parametrize("change", [{"embedding_dim": 16}, {"encoder": "test_vit2"}, {"image_size": 64}])
def test_weights_that_do_not_go_with_the_description_are_refused(
    change: dict, embedder: Embedder, tmp_path: Path
) -> None:
    embedder.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match="model"):
        Embedder.load(tmp_path)


@pytest.mark.parametrize("given", ["run", "run/model"])
def test_the_untrained_encoder_beside_a_runs_model_is_found(given: str, embedder: Embedder, tmp_path: Path) -> None:
    embedder.save(tmp_path / "run" / "model")
    assert Embedder.load(tmp_path / given).baseline_folder is None
    embedder.save(tmp_path / "run" / "untrained")
    assert Embedder.load(tmp_path / given).baseline_folder == tmp_path / "run" / "untrained"
    assert Embedder.load(tmp_path / "run" / "untrained").baseline_folder is None  # it is not its own baseline


@pytest.mark.parametrize(("inside", "given"), [(".", "run"), ("run", "."), ("run", "model"), ("run/model", ".")])
def test_the_untrained_encoder_is_found_from_any_working_folder(
    inside: str, given: str, embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder.save(tmp_path / "run" / "model")
    embedder.save(tmp_path / "run" / "untrained")
    monkeypatch.chdir(tmp_path / inside)
    baseline = Embedder.load(given).baseline_folder
    assert baseline is not None and baseline.resolve() == tmp_path / "run" / "untrained"


def test_the_identity_is_of_weights_and_view(embedder: Embedder, tmp_path: Path) -> None:
    embedder.save(tmp_path / "model")
    again = Embedder.load(tmp_path / "model")
    assert again.identity == embedder.identity and len(embedder.identity) == 16
    assert int(embedder.identity, 16) >= 0
    described = json.loads((tmp_path / "model" / "config.json").read_text())
    changed = {
        "threshold": {"threshold": 0.5, "false_match_rate": 0.01},
        "the default resize": {"resize": 37},
        "squash": {"resize": "squash"},
        "no resize": {"resize": None},
    }
    identities = {}
    for name, change in changed.items():
        (tmp_path / "model" / "config.json").write_text(json.dumps({**described, **change}))
        identities[name] = Embedder.load(tmp_path / "model").identity
    assert identities["threshold"] == embedder.identity  # says nothing of the embeddings
    assert identities["no resize"] == identities["the default resize"]  # the same view
    assert len({*identities.values()}) == 3
    with torch.no_grad():
        again.encoder.projection.bias[0] += 1e-3
    assert again.identity != embedder.identity


def test_size_and_width(embedder: Embedder) -> None:
    assert (embedder.image_size, embedder.embedding_dim) == (32, 8)


def test_the_threshold_is_kept(embedder: Embedder, tmp_path: Path) -> None:
    embedder.threshold, embedder.false_match_rate = 0.625, 0.01
    embedder.save(tmp_path, card="# Mine\n")
    loaded = Embedder.load(tmp_path)
    assert (loaded.threshold, loaded.false_match_rate, loaded.card) == (0.625, 0.01, "# Mine\n")
    loaded.save(tmp_path / "copy")
    assert (tmp_path / "copy" / "README.md").read_text() == "# Mine\n"
    write_threshold(tmp_path, None, 0.01)
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "format_version": 1, "encoder": VIT, "embedding_dim": 8, "image_size": 32, "resize": 36,
    }  # fmt: skip
    assert Embedder.load(tmp_path).threshold is None


def test_a_threshold_that_is_no_number_is_refused(embedder: Embedder, tmp_path: Path) -> None:
    embedder.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "threshold": "high"}))
    with pytest.raises(InputError, match=r"config\.json: threshold is 'high', no number"):
        Embedder.load(tmp_path)


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


def test_a_name_on_the_hub_is_downloaded(hub: list[dict], embedder: Embedder, paths: list[Path]) -> None:
    loaded = Embedder.load("ann/birds")
    np.testing.assert_array_equal(loaded.embed(paths), embedder.embed(paths))
    assert loaded.card == "# Birds\n" and loaded.baseline_folder is None
    assert [request["name"] for request in hub] == ["ann/birds"]
    assert set(hub[0]["allow_patterns"]) == {
        "config.json", "model.safetensors", "classes.json", "README.md", "proxies.safetensors",
    }  # fmt: skip  # no file that could run code


def test_what_the_hub_does_not_give_is_said_in_two_lines(hub: list[dict]) -> None:
    with pytest.raises(InputError, match="no model ann/fish: there is no such folder, and the hub does not") as error:
        Embedder.load("ann/fish")
    assert "Repository Not Found" in str(error.value) and len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    "name", ["nowhere", "./ann/birds", "../ann/birds", "/ann/birds", "a/b/c", "ann/", "local/birds", "~/birds", "-a/b"]
)
def test_what_is_no_name_on_the_hub_asks_no_hub(name: str, hub: list[dict], tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    with pytest.raises(InputError, match=r"neither config\.json nor model/config\.json is there"):
        Embedder.load(name)
    assert hub == []


def test_a_folder_here_comes_before_the_hub(hub: list[dict], encoder: Encoder, tmp_path: Path) -> None:
    Embedder(encoder, classes=["here"]).save(tmp_path / "ann" / "birds")
    assert Embedder.load("ann/birds").classes == ["here"] and hub == []


def test_without_a_network_a_model_of_the_hub_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The hub's own client, whose cache is empty."""

    def no_address(*arguments: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", no_address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "ann/birds"]) == 2
    error = capsys.readouterr().err
    assert "no model ann/birds: there is no such folder, and the hub does not give it: " in error
    assert "connect to the internet, or give a run folder or a model folder" in error
    assert "Traceback" not in error and len(error.splitlines()) == 2


def test_huggingface_hubs_own_ways_of_saving_and_loading(
    embedder: Embedder, tmp_path: Path, paths: list[Path], hub: list[dict]
) -> None:
    embedder.threshold = 0.5
    embedder.save_pretrained(tmp_path / "saved")
    loaded = Embedder.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(loaded.embed(paths), embedder.embed(paths))
    assert (loaded.resize, loaded.classes, loaded.threshold) == (36, ["ä", "b", "c"], 0.5)
    card = ModelCard((tmp_path / "saved" / "README.md").read_text())  # the mixin's own, where the model has none
    assert card.data.library_name == "orthoproxy" and card.data.pipeline_tag == "image-feature-extraction"
    assert {"metric-learning", "image-retrieval"} <= set(card.data.tags)
    loaded.save(tmp_path / "run" / "model", card="# Mine\n")
    Embedder.from_pretrained(tmp_path / "run", device="cpu").save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == "# Mine\n"


def test_push_to_hub_uploads_the_model_folder(
    embedder: Embedder, paths: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def create(api: HfApi, repo_id: str, **options: object) -> RepoUrl:
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload(api: HfApi, repo_id: str, folder_path: Path, **options: object) -> str:
        shutil.copytree(folder_path, tmp_path / "hub" / repo_id)
        return "done"

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    embedder.card = "# Birds\n"
    assert embedder.push_to_hub("ann/birds") == "done"
    there = tmp_path / "hub" / "ann" / "birds"
    assert {path.name for path in there.iterdir()} == {
        "config.json", "model.safetensors", "proxies.safetensors", "classes.json", "README.md",
    }  # fmt: skip
    np.testing.assert_array_equal(Embedder.load(there).embed(paths), embedder.embed(paths))
    assert (there / "README.md").read_text() == "# Birds\n"
