"""The Proxy Anchor loss: each class's proxy is an anchor for all images of the batch."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from orthoproxy.losses.precision import at_least_float32, unit_rows


@at_least_float32
def proxy_anchor_loss(
    embeddings: Float[Tensor, "B D"],
    labels: Int[Tensor, " B"],
    proxies: Float[Tensor, "C D"],
    scale: float = 32.0,
    margin: float = 0.1,
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
        One row an image; normalised here.
    labels
        Class of each image, 0 to C - 1.
    proxies
        One row a class; normalised here. A row of zeros has similarity 0 with everything and gets no gradient.
    scale
        alpha, without unit.
    margin
        delta, in units of cosine similarity.

    Returns
    -------
    Tensor
        A scalar, float32, or float64 where an input is.

    Raises
    ------
    ValueError
        If the batch is empty, labels and embeddings differ in number, or a label lies outside 0 to C - 1 (labels are
        looked at on the processor only, as to look at them on a GPU would make it wait).

    References
    ----------
    Kim et al., "Proxy Anchor Loss for Deep Metric Learning", CVPR 2020, arXiv 2003.13911, equation 4.

    Examples
    --------
    >>> embeddings, labels = torch.eye(2), torch.tensor([0, 1])
    >>> round(float(proxy_anchor_loss(embeddings, labels, proxies=torch.eye(2))), 4)
    3.24
    >>> round(float(proxy_anchor_loss(embeddings, labels, proxies=torch.eye(2).flip(0))), 4)
    38.44
    """
    num_classes = proxies.shape[0]
    if not len(embeddings) or labels.shape != embeddings.shape[:1]:
        raise ValueError(f"labels: {tuple(labels.shape)} for {len(embeddings)} embeddings; give one label each")
    if labels.device.type == "cpu" and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(f"labels: must lie in 0 to {num_classes - 1}, one for each proxy")
    similarity = unit_rows(embeddings) @ unit_rows(proxies).T  # B C
    same = labels[:, None] == torch.arange(num_classes, device=labels.device)  # B C
    pull = _log_one_plus_sum_exp(-scale * (similarity - margin), same)  # C
    push = _log_one_plus_sum_exp(scale * (similarity + margin), ~same)  # C
    classes_in_batch = same.any(dim=0).sum()
    return pull.sum() / classes_in_batch + push.mean()


def _log_one_plus_sum_exp(exponents: Float[Tensor, "B C"], keep: Tensor) -> Float[Tensor, " C"]:
    """Return log(1 + sum over the kept rows of exp), column by column; 0 where no row is kept."""
    one = torch.zeros_like(exponents[:1])  # the 1 of the formula: exp(0)
    return torch.cat([one, exponents.masked_fill(~keep, -torch.inf)]).logsumexp(dim=0)


class ProxyAnchorLoss(nn.Module):
    """`proxy_anchor_loss` with the proxies as its parameter, one a class.

    The proxies start as Kaiming-normal rows (fan out), as in the authors' code; `training.initialise` can set them to
    class means instead. Give them a learning rate of their own, about 100 times the encoder's.

    Parameters
    ----------
    num_classes
        C, at least 1.
    embedding_dim
        D.
    scale, margin
        As in `proxy_anchor_loss`.

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
        self.scale, self.margin = scale, margin
        self.proxies = nn.Parameter(torch.empty(num_classes, embedding_dim))
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")

    def forward(self, embeddings: Float[Tensor, "B D"], labels: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        """Return the loss of a batch; shapes as in `proxy_anchor_loss`."""
        return proxy_anchor_loss(embeddings, labels, self.proxies, self.scale, self.margin)

    def extra_repr(self) -> str:
        """Show the sizes and settings when printed."""
        num_classes, embedding_dim = self.proxies.shape
        return f"num_classes={num_classes}, embedding_dim={embedding_dim}, scale={self.scale}, margin={self.margin}"
