"""The Proxy Anchor loss: each class's proxy is an anchor for all images of the batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from orthoproxy.core.errors import InputError
from orthoproxy.losses.full_precision import at_least_float32, row_lengths, unit_rows


def proxy_anchor_loss(
    embeddings: Float[Tensor, "B D"],
    labels: Int[Tensor, " B"],
    proxies: Float[Tensor, "C D"],
    scale: float = 32.0,
    margin: float = 0.1,
    memory_mb: float = 16.0,
) -> Float[Tensor, ""]:
    r"""Pull embeddings to the proxy of their class and push them from the other proxies.

    With s = cosine similarity, P all proxies, P+ those whose class is in the batch, X+_p and X-_p the embeddings of
    p's class and of the others, alpha = `scale` and delta = `margin`:

          1/|P+| * sum_{p in P+} log(1 + sum_{x in X+_p} exp(-alpha (s(x, p) - delta)))
        + 1/|P|  * sum_{p in P}  log(1 + sum_{x in X-_p} exp( alpha (s(x, p) + delta)))

    Computed in float32 or better whatever the autocast, and with log-sum-exp, so that it stays finite.

    Parameters
    ----------
    embeddings
        Shape (B, D); normalized here.
    labels
        Class of each image, 0 to C - 1, shape (B,).
    proxies
        One per class, shape (C, D); normalized here. A row of zeros has similarity 0 and gets no gradient.
    scale, margin
        alpha, above 0; delta, as a cosine similarity.
    memory_mb
        Bound in MiB on the temporary memory; changes no result beyond rounding.

    Raises
    ------
    InputError
        If the batch is empty, labels and embeddings differ in number, or a label lies outside 0 to C - 1 (checked on
        the CPU only, since reading labels would make a GPU wait).

    References
    ----------
    Kim et al., CVPR 2020, arXiv 2003.13911, equation 4.

    Examples
    --------
    >>> embeddings, labels = torch.eye(2), torch.tensor([0, 1])
    >>> round(float(proxy_anchor_loss(embeddings, labels, proxies=torch.eye(2))), 4)
    3.24
    >>> round(float(proxy_anchor_loss(embeddings, labels, proxies=torch.eye(2).flip(0))), 4)
    38.44
    """
    return proxy_anchor_part(embeddings, labels, proxies, 0, len(proxies), scale, margin, memory_mb)


@at_least_float32
def proxy_anchor_part(
    embeddings: Float[Tensor, "B D"],
    labels: Int[Tensor, " B"],
    proxies: Float[Tensor, "c D"],
    first_class: int,
    num_classes: int,
    scale: float,
    margin: float,
    memory_mb: float = 16.0,
) -> Float[Tensor, ""]:
    """Return the part of the loss that belongs to c consecutive proxies, of which `first_class` is the first."""
    if not len(embeddings) or labels.shape != embeddings.shape[:1]:
        expected = f"one for each of {len(embeddings)} embeddings, at least one"
        raise InputError(f"shape {tuple(labels.shape)}", field="labels", expected=expected)
    if labels.device.type == "cpu" and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        problem = f"{int(labels.min())} to {int(labels.max())}"
        raise InputError(problem, field="labels", expected=f"0 to {num_classes - 1}")
    units, labels = unit_rows(embeddings), labels - first_class
    loss = _ProxyAnchor.apply(units, proxies, labels, _Settings(num_classes, scale, margin, memory_mb))
    assert isinstance(loss, Tensor)
    return loss


class _Settings(NamedTuple):
    num_classes: int
    scale: float
    margin: float
    memory_mb: float


class _ProxyAnchor(torch.autograd.Function):
    """The loss and its gradients in one pass over the proxies, some at a time, without a B x C matrix.

    Let u be the proxies at unit length, e_pb = alpha (s_pb + delta), and l_p = log(1 + sum of exp e_pb over p's
    negatives b). The derivative by the similarity with a negative is ``alpha / |P| * exp(e_pb - l_p)``, and with the
    positive what `_pull` says. Of this matrix W of C x B only the rows of some proxies exist at any time. The
    gradients are W^T u for the embeddings and W x for the unit proxies; from the latter, the part along the proxy is
    taken away, since its length does not count.

    The c proxies may be a part of all C. Labels count from the first of them; an image of another class is a negative.
    """

    @staticmethod
    def forward(
        ctx: Any,
        units: Float[Tensor, "B D"],
        proxies: Float[Tensor, "c D"],
        labels: Int[Tensor, " B"],
        settings: _Settings,
    ) -> Float[Tensor, ""]:
        ctx.save_for_backward(units, proxies, labels)
        ctx.settings = settings
        wanted = any(ctx.needs_input_grad[:2])
        loss, ctx.gradients = _loss_and_gradients(units, proxies, labels, settings, wanted)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *by_loss: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradients, ctx.gradients = ctx.gradients, None  # to be scaled in place, as a copy would be as large as P
        if gradients is None:  # a retained graph is traversed again
            units, proxies, labels = ctx.saved_tensors
            _, gradients = _loss_and_gradients(units, proxies, labels, ctx.settings, wanted=True)
            assert gradients is not None
        factor = by_loss[0]
        if factor.device.type != "cpu" or factor != 1:  # reading it would make a GPU wait
            for gradient in gradients:
                gradient.mul_(factor)
        return *gradients, None, None


def _loss_and_gradients(
    units: Float[Tensor, "B D"],
    proxies: Float[Tensor, "c D"],
    labels: Int[Tensor, " B"],
    settings: _Settings,
    wanted: bool,
) -> tuple[Float[Tensor, ""], tuple[Float[Tensor, "B D"], Float[Tensor, "c D"]] | None]:
    """Return the loss and, where wanted, its gradients by the unit embeddings and the proxies; see `_ProxyAnchor`."""
    num_classes, scale, margin, memory_mb = settings
    pull, by_positive = _pull(units, proxies, labels, scale, margin)
    gradients = (torch.zeros_like(units), torch.empty_like(proxies)) if wanted else None
    push = [pull.new_zeros(())]
    images, scaled = torch.arange(len(labels), device=labels.device), scale * units
    size = max(1, int(memory_mb * 2**20 / (proxies.element_size() * 2 * (len(units) + units.shape[1]))))
    for start in range(0, len(proxies), size):  # the similarities and unit rows of a part fit the memory
        part = proxies[start : start + size]
        length = row_lengths(part)
        unit_part = part / length  # p D
        exponents = unit_part @ scaled.T  # p B; the margin is added where it costs nothing
        here = (labels >= start) & (labels < start + len(part))
        positive = (torch.where(here, labels - start, 0), images)
        exponents[positive] = exponents[positive].masked_fill(here, -torch.inf)
        largest = exponents.amax(dim=1, keepdim=True).add_(scale * margin).clamp_(min=0)
        exponentials = exponents.sub_(largest - scale * margin).exp_()
        total = exponentials.sum(dim=1, keepdim=True).add_((-largest).exp())
        push.append(total.log().add_(largest).sum())
        if gradients is not None:
            by_units, by_proxies = gradients
            weights = exponentials.mul_(scale / num_classes / total)
            weights[positive] = torch.where(here, by_positive, weights[positive])
            by_units.addmm_(weights.T, unit_part)
            by_part = torch.mm(weights.div_(length), units, out=by_proxies[start : start + len(part)])
            along = (by_part * unit_part).sum(dim=1, keepdim=True)
            by_part.addcmul_(unit_part, along, value=-1)
    return pull + torch.stack(push).sum() / num_classes, gradients


def _pull(
    units: Float[Tensor, "B D"], proxies: Float[Tensor, "c D"], labels: Int[Tensor, " B"], scale: float, margin: float
) -> tuple[Float[Tensor, ""], Float[Tensor, " B"]]:
    """Return the first sum of the loss, and its derivative by each image's similarity with its own proxy.

    With f_b = -alpha (s_b - delta) and m_b = log(1 + sum of exp f over the images of b's class), the derivative is
    ``-alpha / |P+| * exp(f_b - m_b)``. Of the sum, the classes of the proxies given; P+ are all classes of the batch.
    """
    here = (labels >= 0) & (labels < len(proxies))
    own = proxies[torch.where(here, labels, 0)] if len(proxies) else torch.zeros_like(units)
    similarity = (units * unit_rows(own)).sum(dim=1)  # B
    exponents = -scale * (similarity - margin)
    same = labels[:, None] == labels  # B B
    of_class = exponents.expand_as(same).masked_fill(~same, -torch.inf).logsumexp(dim=1)
    of_class = torch.logaddexp(of_class, torch.zeros_like(of_class))
    weight = 1 / same.to(units).sum(dim=1)  # a class counts once, however many images it has
    classes_in_batch = weight.sum()
    pulled = (of_class * weight).masked_fill(~here, 0)
    return pulled.sum() / classes_in_batch, -scale / classes_in_batch * (exponents - of_class).exp()


def check_settings(num_classes: int, scale: float) -> None:
    """Raise `InputError` for settings without a meaning."""
    if num_classes < 1:
        raise InputError(f"{num_classes}", field="num_classes", expected="at least 1")
    if not scale > 0:
        raise InputError(f"{scale:g}", field="scale", expected="above 0")


class ProxyAnchorLoss(nn.Module):
    """`proxy_anchor_loss` with one proxy per class as its parameter.

    Proxies are initialized as Kaiming-normal rows (fan out), as in the authors' code; `Objective.set_class_vectors` can
    replace them by class means. Give them a learning rate of their own, about 100 times the encoder's.

    Parameters
    ----------
    num_classes, embedding_dim
        C, at least 1, and D.
    scale, margin
        As in `proxy_anchor_loss`.

    Raises
    ------
    InputError
        If `num_classes` is below 1, or `scale` is not above 0.

    Examples
    --------
    >>> loss = ProxyAnchorLoss(num_classes=3, embedding_dim=8)
    >>> value = loss(torch.randn(5, 8), torch.tensor([0, 0, 1, 2, 2]))
    >>> value.backward()
    >>> loss.proxies.grad.shape
    torch.Size([3, 8])
    """

    def __init__(self, num_classes: int, embedding_dim: int, scale: float = 32.0, margin: float = 0.1) -> None:
        super().__init__()
        check_settings(num_classes, scale)
        self.scale, self.margin = scale, margin
        self.proxies = nn.Parameter(torch.empty(num_classes, embedding_dim))
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")

    def forward(self, embeddings: Float[Tensor, "B D"], labels: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        """Return the loss of a batch."""
        return proxy_anchor_loss(embeddings, labels, self.proxies, self.scale, self.margin)

    def extra_repr(self) -> str:
        num_classes, embedding_dim = self.proxies.shape
        return f"num_classes={num_classes}, embedding_dim={embedding_dim}, scale={self.scale}, margin={self.margin}"
