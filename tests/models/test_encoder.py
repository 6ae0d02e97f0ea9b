"""The encoder: unit length, the same feature in both modes, any size, frozen parts, and pixels taken as they come."""

from collections.abc import Callable

import pytest
import timm
import torch
from errors import error_of
from torch import Tensor

from orthoproxy.models import Encoder

DISTILLED = "deit_tiny_distilled_patch16_224"
SMALL_VIT = "test_vit"
SMALL_CNN = "test_efficientnet"  # timm's own model for tests, with batch norm


def images(count: int = 2, size: int = 32) -> Tensor:
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("embedding_dim", [None, 8])
@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", DISTILLED, SMALL_CNN])
def test_embeddings_have_unit_length_and_the_width_asked_for(name: str, embedding_dim: int | None) -> None:
    encoder = Encoder(name, embedding_dim, image_size=64).eval()
    with torch.no_grad():
        embeddings, features = encoder(images(3, 64)), encoder.features(images(3, 64))
    width = embedding_dim or features.shape[1]
    assert embeddings.shape == (3, width)
    assert encoder.embedding_dim == width and encoder.feature_dim == features.shape[1]
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
    expected = torch.nn.functional.normalize(encoder.projection(features), dim=1)
    torch.testing.assert_close(embeddings, expected.detach())


@pytest.mark.parametrize(("name", "pooling", "pool"), [
    (DISTILLED, None, lambda tokens: tokens[:, :2].mean(dim=1)),
    ("deit_tiny_patch16_224", "avg", lambda tokens: tokens[:, 1:].mean(dim=1)),  # without the class token
    ("deit_tiny_patch16_224", "max", lambda tokens: tokens[:, 1:].amax(dim=1)),
])  # fmt: skip
def test_tokens_are_pooled_in_training_as_in_evaluation(name: str, pooling: str | None, pool: Callable) -> None:
    encoder = Encoder(name, image_size=32, pooling=pooling)
    with torch.no_grad():
        tokens = encoder.backbone.forward_features((images() / 255 - encoder.mean) / encoder.std)
        for mode in (True, False):
            torch.testing.assert_close(encoder.train(mode).features(images()), pool(tokens))
    assert (tokens[:, 0] - tokens[:, 1]).norm() > 0.1


def test_drop_path_drops_in_training_only() -> None:
    encoder = Encoder(SMALL_VIT, 8, image_size=32, drop_path=0.5)
    with torch.no_grad():
        assert torch.equal(encoder.eval()(images()), encoder(images()))
        encoder.train()
        assert not torch.equal(encoder(images()), encoder(images()))


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_batch_norm_keeps_its_statistics_in_training(frozen: bool) -> None:
    encoder = Encoder(SMALL_CNN, 8, image_size=64, freeze_batchnorm=frozen).train()
    before = {name: x.clone() for name, x in encoder.backbone.named_buffers() if "running" in name}
    pixels = images(3, 64)
    with torch.no_grad():
        beside = [encoder(pixels[[0, other]])[0] for other in (1, 2)]
    after = dict(encoder.backbone.named_buffers())
    assert len(before) > 10
    assert all(torch.equal(x, after[name]) for name, x in before.items()) == frozen
    assert torch.allclose(*beside, atol=1e-5) == frozen  # with batch statistics an image's neighbors matter
    assert encoder.training and encoder.projection.training
    assert not any(module.training for module in encoder.eval().modules())


def test_the_dry_run_leaves_no_trace() -> None:
    encoder = Encoder(SMALL_CNN, 8, image_size=32)
    fresh = timm.create_model(SMALL_CNN)
    counters = {name: x for name, x in encoder.backbone.named_buffers() if name.endswith(("mean", "var", "tracked"))}
    assert counters and all(torch.equal(x, fresh.get_buffer(name)) for name, x in counters.items())
    assert all(module.training for module in encoder.modules())


def test_the_patch_embedding_can_be_frozen() -> None:
    encoder = Encoder(SMALL_VIT, 8, image_size=32)
    encoder.freeze_patch_embedding()
    frozen = {name for name, parameter in encoder.named_parameters() if not parameter.requires_grad}
    assert frozen == {"backbone.patch_embed.proj.weight", "backbone.patch_embed.proj.bias"}
    encoder(images()).sum().backward()
    assert encoder.backbone.patch_embed.proj.weight.grad is None
    assert encoder.backbone.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    assert error_of(Encoder(SMALL_CNN, image_size=32).freeze_patch_embedding).field == "freeze_patch_embedding"


@pytest.mark.parametrize(("name", "last"), [
    (SMALL_VIT, ("blocks.5.", "norm.")), (SMALL_CNN, ("blocks.4.", "conv_head.", "bn2.")),
    ("test_convnext", ("stages.3.blocks.1.", "head.")),
])  # fmt: skip
def test_only_the_last_blocks_are_trained(name: str, last: tuple[str, ...]) -> None:
    encoder = Encoder(name, 8, image_size=32)
    encoder.train_last_blocks(1)
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    of_backbone = {f"backbone.{name}" for name, _ in encoder.backbone.named_parameters() if name.startswith(last)}
    assert trained == of_backbone | {"projection.weight", "projection.bias"}


def test_low_rank_additions_start_at_zero_and_are_merged() -> None:
    encoder, x = Encoder(SMALL_VIT, 8, image_size=32).eval(), images()
    with torch.no_grad():
        before = encoder(x)
        encoder.add_lora(rank=2)
        assert torch.equal(encoder(x), before)
        trained = {n: p for n, p in encoder.backbone.named_parameters() if p.requires_grad}
        assert len(trained) == 4 * 2 * len(encoder.backbone.blocks)  # two matrices in each of four linear layers
        for parameter in trained.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        after = encoder(x)
        encoder.merge_lora()
        torch.testing.assert_close(encoder(x), after, rtol=0, atol=1e-6)
    assert (after - before).abs().max() > 0.01
    assert encoder.state_dict().keys() == Encoder(SMALL_VIT, 8, image_size=32).state_dict().keys()
    assert error_of(Encoder("test_resnet", image_size=32).add_lora, 2).field == "lora_rank"


@pytest.mark.parametrize(("name", "image_size", "pooling", "field"), [
    ("deit_smal_patch16", 32, None, "name"), ("deit_tiny_patch16_224", 8, None, "image_size"),
    ("levit_128s", 8, None, "image_size"), (DISTILLED, 32, "avg", "pooling"), (SMALL_CNN, 32, "token", "pooling"),
    (SMALL_VIT, 32, "mean", "pooling"),
])  # fmt: skip
def test_a_backbone_size_or_pooling_that_timm_cannot_build_is_an_error(name, image_size, pooling, field) -> None:
    assert error_of(Encoder, name, image_size=image_size, pooling=pooling).field == field
