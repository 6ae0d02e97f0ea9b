"""The encoder: images in, one unit-length embedding per image out."""

from __future__ import annotations

import re
from typing import Any

import timm
import torch
from jaxtyping import Float, Shaped
from timm.data.config import resolve_data_config
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized, register_parametrization, remove_parametrizations

from orthoproxy.core.errors import InputError, did_you_mean


class Encoder(nn.Module):
    """A timm backbone, a linear projection, and normalization to unit length.

    Applies the mean and standard deviation of the backbone's pretrained weights, so inputs are plain pixels.

    Parameters
    ----------
    name
        Any timm backbone, for example ``deit_small_patch16_224``.
    embedding_dim
        D, the embedding dimension; None for the backbone's own pooled features without a projection.
    image_size
        Side of the square input in pixels. Vision transformers resample their position embeddings to it.
    drop_path
        Stochastic depth: probability of dropping a residual branch in training.
    freeze_batchnorm
        Use the stored batch-norm statistics in training too.
    pooling
        How features become one vector: a ``global_pool`` of timm, for vision transformers ``token`` (the class token),
        ``avg`` or ``max`` (of the patch tokens). None for the backbone's own.

    Raises
    ------
    InputError
        If timm has no backbone of that name, or cannot build it at that size or with that pooling.

    Examples
    --------
    >>> encoder = Encoder("deit_tiny_patch16_224", embedding_dim=64, image_size=96)
    >>> embeddings = encoder(torch.rand(2, 3, 96, 96))
    >>> embeddings.shape, embeddings.norm(dim=1).round(decimals=4).tolist()
    (torch.Size([2, 64]), [1.0, 1.0])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        embedding_dim: int | None = None,
        image_size: int = 224,
        drop_path: float = 0.0,
        freeze_batchnorm: bool = False,
        pooling: str | None = None,
    ) -> None:
        super().__init__()
        self.name, self.image_size, self.freeze_batchnorm = name, image_size, freeze_batchnorm
        self.backbone: Any = _create_backbone(name, image_size, drop_path)  # timm's models share no type
        self.pooling = pooling
        if pooling is not None:
            _set_pooling(self.backbone, pooling, name)
        self.feature_dim = self._pooled_width()
        self.embedding_dim = embedding_dim or self.feature_dim
        self.projection = nn.Linear(self.feature_dim, embedding_dim) if embedding_dim else nn.Identity()
        if isinstance(self.projection, nn.Linear):
            nn.init.zeros_(self.projection.bias)
        # pixel by pixel in memory, which makes convolutions in bfloat16 faster
        self.backbone.to(memory_format=torch.channels_last)
        expects = resolve_data_config({}, model=self.backbone)
        self.register_buffer("mean", torch.tensor(expects["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(expects["std"]).view(3, 1, 1), persistent=False)

    def features(self, images: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
        """Return the backbone's pooled features of RGB images, uint8 from 0 to 255 or floating point from 0 to 1."""
        pixels = images.to(self.mean.dtype) / 255 if images.dtype == torch.uint8 else images
        return self._pooled(((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last))

    def _pooled(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B F"]:
        # pre_logits: a distilled DeiT then averages its two tokens in training as in evaluation
        return self.backbone.forward_head(self.backbone.forward_features(pixels), pre_logits=True)

    def _pooled_width(self) -> int:
        """Run the backbone once: some pool to another width than they declare."""
        self.backbone.eval()
        try:
            with torch.no_grad():
                return self._pooled(torch.zeros(1, 3, self.image_size, self.image_size)).shape[1]
        except RuntimeError as error:
            problem = f"{self.image_size} does not work with {self.name}: {str(error).splitlines()[0]}"
            raise InputError(problem, field="image_size") from error
        finally:
            self.backbone.train()

    def forward(self, images: Shaped[Tensor, "B 3 H W"] | Float[Tensor, "B F"]) -> Float[Tensor, "B D"]:
        """Return unit-length embeddings, in float32 or better; images as in `features`, or the pooled features."""
        embeddings = self.projection(images if images.ndim == 2 else self.features(images))
        return F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=1)

    def train(self, mode: bool = True) -> Encoder:
        """Switch between training and evaluation; frozen batch-norm layers stay in evaluation."""
        super().train(mode)
        if self.freeze_batchnorm:
            for module in self.backbone.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def freeze(self) -> None:
        """Freeze the backbone; only the projection is trained."""
        self.backbone.requires_grad_(False)

    def train_last_blocks(self, count: int) -> None:
        """Freeze all of the backbone before its last blocks, as many as given; what follows them is trained, too."""
        if not hasattr(self.backbone, "group_matcher"):
            raise InputError(f"timm does not know the blocks of {self.name}", field="trainable_blocks", expected="null")
        layers = group_parameters(self.backbone, self.backbone.group_matcher(coarse=False))
        blocks = [layer for layer in sorted(layers) if any(re.search(r"\.\d+\.", name) for name in layers[layer])]
        for layer in range(blocks[max(0, len(blocks) - count)]):
            for name in layers[layer]:
                self.backbone.get_parameter(name).requires_grad_(False)

    def add_lora(self, rank: int) -> None:
        """Freeze the backbone, and train additions to its linear layers instead (Hu et al., "LoRA", ICLR 2022)."""
        self.backbone.requires_grad_(False)
        linear = [module for module in self.backbone.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise InputError(f"{self.name} has no linear layers", field="lora_rank", expected="null")
        for module in linear:
            register_parametrization(module, "weight", _LowRankAddition(module.weight, rank))

    def merge_lora(self) -> None:
        """Turn the weights with their additions, if there are any, into plain weights."""
        for module in self.backbone.modules():
            if is_parametrized(module, "weight"):
                remove_parametrizations(module, "weight")

    def freeze_patch_embedding(self) -> None:
        """Freeze the patch embedding; raises InputError if the backbone has none."""
        patch_embedding = getattr(self.backbone, "patch_embed", None)
        if patch_embedding is None:
            raise InputError(f"{self.name} has no patch embedding", field="freeze_patch_embedding", expected="false")
        patch_embedding.requires_grad_(False)


class _LowRankAddition(nn.Module):
    """W + B A, with A of `rank` rows and B zero at first."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(nn.init.kaiming_uniform_(weight.new_empty(rank, weight.shape[1]), a=5**0.5))
        self.b = nn.Parameter(weight.new_zeros(len(weight), rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


def _create_backbone(name: str, image_size: int, drop_path: float) -> nn.Module:
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models(), "timm.list_models() lists them", count=3)
        raise InputError(f"timm has no backbone {name!r}", field="name", hint=hint)
    defaults = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    if defaults is not None and defaults.fixed_input_size:
        options["img_size"] = image_size
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(f"timm cannot build {name} at {image_size} pixels: {error}", field="image_size") from error


def _set_pooling(backbone: Any, pooling: str, name: str) -> None:
    try:
        backbone.reset_classifier(0, pooling)
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(f"{pooling!r} does not work with {name}: {error}", field="pooling") from error
