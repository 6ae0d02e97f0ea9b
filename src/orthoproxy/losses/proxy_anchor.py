"""The Proxy Anchor loss: each class's proxy is an anchor for all images of the batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from orthoproxy.core.distributed import all_reduce_sum, local_slice, process_count, split_sizes
from orthoproxy.core.errors import InputError
from orthoproxy.losses.full_precision import at_least_float32, row_lengths, unit_rows

BLOCK = 2**16  # proxies drawn at a time; PyTorch draws in groups of 16, so these are the numbers of a single draw


def proxy_anchor_loss(
    embeddings: Float[Tensor, "B D"],
    labels: Integer[Tensor, " B"],
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
        Class of each image, 0 to C - 1, shape (B,), of any integer type.
    proxies
        One per class, shape (C, D); normalized here. A row of zeros has similarity 0 and gets no gradient.
    scale, margin
        alpha, above 0; delta, as a cosine similarity.
    memory_mb
        Bound in MiB on the similarities with proxies that exist at a time; changes no result beyond rounding. The B x B
        matrix of positives and the gradients come on top.

    Raises
    ------
    InputError
        If the batch is empty, labels and embeddings differ in number, labels are no integers, or a label lies outside
        0 to C - 1 (checked on the CPU only, since reading labels would make a GPU wait).

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
    labels: Integer[Tensor, " B"],
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
    labels = class_numbers(labels)
    if labels.device.type == "cpu" and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        problem = f"{int(labels.min())} to {int(labels.max())}"
        raise InputError(problem, field="labels", expected=f"0 to {num_classes - 1}")
    compute = partial(_loss_and_gradients, num_classes=num_classes, scale=scale, margin=margin, memory_mb=memory_mb)
    return cast(Tensor, _ProxyAnchor.apply(unit_rows(embeddings), proxies, labels - first_class, compute))


def class_numbers(labels: Integer[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Return labels of any integer type as int64: PyTorch takes uint8 for a mask, and no other short type as index."""
    if labels.dtype == torch.bool or labels.dtype.is_floating_point:
        raise InputError(f"of type {labels.dtype}", field="labels", expected="integers")
    return labels.long()


class _ProxyAnchor(torch.autograd.Function):
    """The loss and its gradients in one pass over the proxies, some at a time, without a B x C matrix.

    Autograd would keep that matrix, and is several times slower with many classes.

    Let x be the embeddings and u the proxies at unit length, e_pb = alpha (s_pb + delta), and
    l_p = log(1 + sum of exp e_pb over p's negatives b). The derivative with respect to the similarity of a negative is
    ``alpha / |P| * exp(e_pb - l_p)``; `_pull` returns that of a positive. They form a C x B matrix W, of which only the
    rows of some proxies exist at any time. The gradients are W^T u for x and W x for u; the component of the latter
    along u is removed, since the length of a proxy does not count.

    The c proxies may be a part of all C. Labels count from the first of them; an image of another class is a negative.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "B D"],
        proxies: Float[Tensor, "c D"],
        labels: Int[Tensor, " B"],
        compute: Callable[..., Any],
    ) -> Float[Tensor, ""]:
        ctx.save_for_backward(x, proxies, labels)
        ctx.compute = compute
        loss, ctx.gradients = compute(x, proxies, labels, needs_grad=any(ctx.needs_input_grad[:2]))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_output: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradients, ctx.gradients = ctx.gradients, None  # to be scaled in place, as a copy would be as large as P
        if gradients is None:  # a retained graph is traversed again
            _, gradients = ctx.compute(*ctx.saved_tensors, needs_grad=True)
        factor = grad_output[0]
        if factor.device.type != "cpu" or factor != 1:  # reading it would make a GPU wait
            for gradient in gradients:
                gradient.mul_(factor)
        return *gradients, None, None


def _loss_and_gradients(
    x: Float[Tensor, "B D"],
    proxies: Float[Tensor, "c D"],
    labels: Int[Tensor, " B"],
    num_classes: int,
    scale: float,
    margin: float,
    memory_mb: float,
    needs_grad: bool,
) -> tuple[Float[Tensor, ""], tuple[Float[Tensor, "B D"], Float[Tensor, "c D"]] | None]:
    """Return the loss and, with `needs_grad`, its gradients with respect to x and the proxies; see `_ProxyAnchor`."""
    pull, grad_positive = _pull(x, proxies, labels, scale, margin)
    gradients = (torch.zeros_like(x), torch.empty_like(proxies)) if needs_grad else None
    push = [pull.new_zeros(())]
    images, scaled = torch.arange(len(labels), device=labels.device), scale * x
    size = max(1, int(memory_mb * 2**20 / (proxies.element_size() * 2 * (len(x) + x.shape[1]))))
    for start in range(0, len(proxies), size):  # the similarities and unit rows of a part fit the memory
        part = proxies[start : start + size]
        length = row_lengths(part)
        u = part / length  # p D
        exponents = u @ scaled.T  # p B; exponentials and weights share its memory
        is_local = (labels >= start) & (labels < start + len(part))
        positive = (torch.where(is_local, labels - start, 0), images)
        exponents[positive] = exponents[positive].masked_fill(is_local, -torch.inf)
        # the margin is added to each row's maximum instead of each element
        largest = exponents.amax(dim=1, keepdim=True).add_(scale * margin).clamp_(min=0)
        exponentials = exponents.sub_(largest - scale * margin).exp_()
        total = exponentials.sum(dim=1, keepdim=True).add_((-largest).exp())
        push.append(total.log().add_(largest).sum())
        if gradients is not None:
            grad_embeddings, grad_proxies = gradients
            weights = exponentials.mul_(scale / num_classes / total)
            weights[positive] = torch.where(is_local, grad_positive, weights[positive])
            grad_embeddings.addmm_(weights.T, u)
            grad_part = torch.mm(weights.div_(length), x, out=grad_proxies[start : start + len(part)])
            radial = (grad_part * u).sum(dim=1, keepdim=True)
            grad_part.addcmul_(u, radial, value=-1)
    return pull + torch.stack(push).sum() / num_classes, gradients


def _pull(
    x: Float[Tensor, "B D"], proxies: Float[Tensor, "c D"], labels: Int[Tensor, " B"], scale: float, margin: float
) -> tuple[Float[Tensor, ""], Float[Tensor, " B"]]:
    """Return the first sum of the loss, and its derivative with respect to each image's similarity with its own proxy.

    With f_b = -alpha (s_b - delta) and m_b = log(1 + sum of exp f over the images of b's class), the derivative is
    ``-alpha / |P+| * exp(f_b - m_b)``. The sum runs over the classes of the given proxies only, but |P+| counts all
    classes of the batch.
    """
    is_local = (labels >= 0) & (labels < len(proxies))
    own = proxies[torch.where(is_local, labels, 0)] if len(proxies) else torch.zeros_like(x)
    similarity = (x * unit_rows(own)).sum(dim=1)  # B
    exponents = -scale * (similarity - margin)
    same = labels[:, None] == labels  # B B
    of_class = exponents.expand_as(same).masked_fill(~same, -torch.inf).logsumexp(dim=1)
    of_class = torch.logaddexp(of_class, torch.zeros_like(of_class))
    weight = 1 / same.to(x).sum(dim=1)  # a class counts once, however many images it has
    classes_in_batch = weight.sum()
    pulled = (of_class * weight).masked_fill(~is_local, 0)
    return pulled.sum() / classes_in_batch, -scale / classes_in_batch * (exponents - of_class).exp()


class ProxyAnchorLoss(nn.Module):
    """`proxy_anchor_loss` with one proxy per class as its parameter.

    Proxies are initialized as Kaiming-normal rows (fan out), as in the authors' code; `Objective.set_class_vectors` can
    replace them by class means. Give them a learning rate of their own, about 100 times the encoder's.

    Parameters
    ----------
    num_classes, embedding_dim
        C, at least 1, and D.
    scale, margin
        Alpha, above 0, and delta, a cosine similarity.
    sharded
        Divide the proxies among the W processes: each holds the about C / W proxies of its `classes`, with their
        optimizer state. Construct it with the same random seed in each process, and pass the embeddings and labels of
        the whole batch, from `all_gather_rows`; the encoder's gradients must then be averaged, as DDP does.

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

    def __init__(
        self, num_classes: int, embedding_dim: int, scale: float = 32.0, margin: float = 0.1, sharded: bool = False
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise InputError(f"{num_classes}", field="num_classes", expected="at least 1")
        if not scale > 0:
            raise InputError(f"{scale:g}", field="scale", expected="above 0")
        self.num_classes, self.scale, self.margin, self.sharded = num_classes, scale, margin, sharded
        self.sizes = split_sizes(num_classes)  # of the shards
        self.classes = range(num_classes)[local_slice(self.sizes)] if sharded else range(num_classes)
        self.proxies = nn.Parameter(_rows_of_kaiming_normal(num_classes, embedding_dim, self.classes))

    def forward(self, embeddings: Float[Tensor, "B D"], labels: Integer[Tensor, " B"]) -> Float[Tensor, ""]:
        """Return the loss of a batch."""
        if not self.sharded:
            return proxy_anchor_loss(embeddings, labels, self.proxies, self.scale, self.margin)
        # Process r computes the part a_r of the loss a_1 + ... + a_W. The backward pass of `all_gather_rows` sums the
        # gradients of the parts; then DDP divides those of the encoder by W, so each process scales its part by W.
        # (Without sharding each process computes the whole loss, and the sum has that factor already.)
        x = embeddings + (process_count() - 1) * (embeddings - embeddings.detach())
        first = self.classes.start
        part = proxy_anchor_part(x, labels, self.proxies, first, self.num_classes, self.scale, self.margin)
        return all_reduce_sum(part)

    def extra_repr(self) -> str:
        sizes = f"num_classes={self.num_classes}, embedding_dim={self.proxies.shape[1]}"
        return f"{sizes}, scale={self.scale}, margin={self.margin}{', sharded=True' if self.sharded else ''}"


def _rows_of_kaiming_normal(num_classes: int, dim: int, own: range) -> Float[Tensor, "c D"]:
    """Draw all rows in blocks and keep those of `own`, so that they are the same for any number of processes."""
    kept = torch.empty(len(own), dim)
    starts = range(0, max(1, num_classes - BLOCK + 1), BLOCK)  # the last block takes what is left over as well
    for start in starts:
        end = num_classes if start == starts[-1] else start + BLOCK
        rows = torch.empty(end - start, dim).normal_(0, math.sqrt(2) / math.sqrt(num_classes))
        first, last = max(start, own.start), min(end, own.stop)
        if first < last:
            kept[first - own.start : last - own.start] = rows[first - start : last - start]
    return kept
