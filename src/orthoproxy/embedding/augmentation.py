"""Embeddings averaged over views of an image: the image, its center enlarged, and both mirrored."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from jaxtyping import Float, Shaped

if TYPE_CHECKING:
    from torch import Tensor

Model = TypeVar("Model")  # an Embedder or OnnxEmbedder
AUGMENTED = "+augment"  # ends the identity of a model that embeds so
MARGIN = 1 / 16  # of the side, cut off on each side for the second scale


def augmented(model: Model) -> Model:
    """Copy a model to one that embeds the normalized mean of four views, with another identity and no threshold."""
    changed: Any = copy.copy(model)
    changed.augment, changed.threshold = True, None
    return changed


def mean_over_views(
    embed: Callable[[Tensor], Float[Tensor, "b D"]], images: Shaped[Tensor, "b 3 H W"]
) -> Float[Tensor, "b D"]:
    """Embed pixels, uint8 or from 0 to 1, as the normalized mean over their views."""
    import torch  # an exported model that is not augmented does without
    import torch.nn.functional as F

    pixels = images if images.is_floating_point() else images / 255
    side = pixels.shape[-1]
    kept = slice(round(MARGIN * side), side - round(MARGIN * side))
    closer = F.interpolate(pixels[..., kept, kept], size=(side, side), mode="bicubic").clamp(0, 1)
    views = (pixels, pixels.flip(-1), closer, closer.flip(-1))
    return F.normalize(torch.stack([embed(view) for view in views]).mean(dim=0), dim=1)
