"""Proxy Anchor against the published formula, written out in loops, and against pytorch-metric-learning."""

import numpy as np
import pytest
import torch
from errors import error_of
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning import losses as peers

from orthoproxy.losses import Objective, ProxyAnchorLoss, SoftOrthogonality, make_loss, proxy_anchor_loss
from orthoproxy.training import class_means


def published_formula(x: np.ndarray, y: np.ndarray, p: np.ndarray, scale: float, margin: float) -> float:
    """Equation 4 of arXiv 2003.13911, proxy by proxy and image by image."""
    pull, push, classes_in_batch = 0.0, 0.0, 0
    for c, proxy in enumerate(p):
        positives, negatives = [], []
        for image, label in zip(x, y, strict=True):
            s = float(np.dot(image, proxy) / (np.linalg.norm(image) * np.linalg.norm(proxy)))
            if label == c:
                positives.append(-scale * (s - margin))
            else:
                negatives.append(scale * (s + margin))
        classes_in_batch += bool(positives)
        pull += np.logaddexp.reduce([0.0, *positives])  # log(1 + sum of exp)
        push += np.logaddexp.reduce([0.0, *negatives])
    return pull / classes_in_batch + push / len(p)


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings, labels and proxies: any batch, one class only, every class, or many more classes than images."""
    kind = draw(st.sampled_from(["any", "one class", "all classes", "many classes"]))
    num_classes = draw(st.integers(100, 300) if kind == "many classes" else st.integers(1, 12))
    batch = draw(st.integers(num_classes if kind == "all classes" else 1, 14))
    dim = draw(st.integers(2, 24))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = generator.integers(num_classes, size=batch)
    if kind == "one class":
        labels[:] = labels[0]
    if kind == "all classes":
        labels[:num_classes] = generator.permutation(num_classes)
    lengths = 10.0 ** draw(st.integers(-3, 3))
    x, p = generator.standard_normal((batch, dim)), generator.standard_normal((num_classes, dim))
    return lengths * x, labels, p / lengths


@given(batches(), st.floats(0.5, 64), st.floats(-0.2, 0.5))
def test_value_is_the_published_formula(batch: tuple, scale: float, margin: float) -> None:
    value = proxy_anchor_loss(*map(torch.from_numpy, batch), scale, margin)
    # the absolute part is what rounding 1 + tiny costs
    assert float(value) == pytest.approx(published_formula(*batch, scale, margin), rel=1e-10, abs=1e-14)


@given(batches(), st.sampled_from([{}, {"margin": 0.3, "scale": 16.0}]))
def test_value_and_gradients_are_those_of_pytorch_metric_learning(batch: tuple, options: dict[str, float]) -> None:
    x, y, p = (torch.from_numpy(array) for array in batch)
    x, p = (torch.nn.functional.normalize(tensor).float() for tensor in (x, p))
    reference = peers.ProxyAnchorLoss(*p.shape, options.get("margin", 0.1), options.get("scale", 32.0))
    losses = ProxyAnchorLoss(*p.shape, **options), reference
    values, gradients = [], []
    for loss in losses:
        loss.proxies.data = p.clone()
        embeddings = x.clone().requires_grad_()
        value = loss(embeddings, y)
        value.backward()
        values.append(value.item())
        gradients.append((embeddings.grad, loss.proxies.grad))
    assert values[0] == pytest.approx(values[1], rel=1e-5, abs=1e-6)
    for gradient, expected in zip(*gradients, strict=True):
        assert float((gradient - expected).norm()) <= 1e-5 * max(float(expected.norm()), 1e-3)


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 3], [2, 2, 1]])
def test_gradient(labels: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    p = torch.randn(4, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, p: proxy_anchor_loss(x, torch.tensor(labels), p), (x, p))


@pytest.mark.parametrize("length", [1.0, 1e4])
@pytest.mark.parametrize(("dtype", "of_proxies"), [
    (torch.float16, torch.float16), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.bfloat16),
    (torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float32, torch.float64),
])  # fmt: skip
def test_finite_for_long_repeated_and_zero_rows(dtype: torch.dtype, of_proxies: torch.dtype, length: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(6, 16, generator=generator) * 2 - 1).mul(length).to(dtype)
    p = (torch.rand(5, 16, generator=generator) * 2 - 1).mul(length).to(of_proxies)
    x[1], p[1], p[2] = x[0], x[0], -x[0]  # at their proxy and opposite to it: the largest exponents there are
    x[5], p[4] = 0, 0
    x.requires_grad_(), p.requires_grad_()
    labels = torch.tensor([2, 2, 0, 1, 3, 4])
    expected = proxy_anchor_loss(x.detach().double(), labels, p.detach().double(), scale=64.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = proxy_anchor_loss(x, labels, p, scale=64.0)
    value.backward()
    assert value.dtype == (torch.float64 if of_proxies == torch.float64 else torch.float32)
    assert float(value.detach()) == pytest.approx(float(expected), rel=1e-5)
    assert value.isfinite() and x.grad.isfinite().all() and p.grad.isfinite().all()
    assert torch.equal(x.grad[5], torch.zeros_like(x.grad[5]))
    assert torch.equal(p.grad[4], torch.zeros_like(p.grad[4]))
    assert (x.grad[:5].float().norm(dim=1) > 0).all() or length > 1  # float16 cannot hold gradients of 1e-8


def test_proxies_start_as_kaiming_normal_fan_out() -> None:
    torch.manual_seed(0)
    proxies = ProxyAnchorLoss(400, 100).proxies.detach()
    assert float(proxies.std()) == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    assert float(proxies.mean()) == pytest.approx(0, abs=2e-3)


INTEGERS = [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.uint64]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_labels_may_be_of_any_integer_type(dtype: torch.dtype) -> None:
    """With as many images as classes and no label 0, uint8 would index as a mask."""
    x, labels = torch.randn(4, 8).requires_grad_(), torch.tensor([1, 2, 3, 3])
    objective = Objective(make_loss("NormalizedSoftmaxLoss", 4, 8), 4, SoftOrthogonality())
    for loss in (ProxyAnchorLoss(4, 8), lambda *batch: objective(*batch)["loss"]):
        (found,), (expected,) = (torch.autograd.grad(loss(x, given), x) for given in (labels.to(dtype), labels))
        assert torch.equal(found, expected)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.bfloat16])
def test_labels_of_no_integer_type_are_an_error(dtype: torch.dtype) -> None:
    labels, module = torch.tensor([0, 1]).to(dtype), ProxyAnchorLoss(3, 3)
    assert error_of(proxy_anchor_loss, torch.ones(2, 3), labels, torch.eye(3)).field == "labels"
    assert error_of(Objective(module, 3, SoftOrthogonality()), torch.ones(2, 3), labels).field == "labels"
    assert error_of(class_means, torch.ones(2, 3), labels, 3).field == "labels"


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("images", "labels"), [(2, [0, -1]), (2, [0, 3]), (2, [0]), (0, []), (2, [[0], [1]])])
def test_labels_without_a_proxy_or_an_image_are_an_error(images: int, labels: list) -> None:
    error = error_of(proxy_anchor_loss, torch.ones(images, 3), torch.tensor(labels, dtype=torch.long), torch.eye(3))
    assert error.field == "labels"


def test_proxies_far_from_all_and_near_to_one_image_at_a_high_scale() -> None:
    """Each proxy has a largest exponent of its own, 0 or more: with another one's, some would be rounded away."""
    x = torch.tensor([[1.0, 0.0], [0.999, 0.04]])
    p = torch.tensor([[1.0, 0.0], [-1.0, 0.001], [0.0, 1.0], [-0.09, 1.0]])
    expected = published_formula(*(array.double().numpy() for array in (x, torch.tensor([2, 2]), p)), 300.0, 0.1)
    assert float(proxy_anchor_loss(x, torch.tensor([2, 2]), p, 300.0)) == pytest.approx(expected, rel=1e-6)


def test_gradients_are_scaled_by_what_comes_after() -> None:
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    p = torch.randn(3, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss = proxy_anchor_loss(x, torch.tensor([0, 1, 2, 0, 1, 2]), p)
    once = torch.autograd.grad(loss, (x, p), retain_graph=True)
    for factor in (0.5, -3.0):  # the graph is retained: gradients are computed again
        scaled = torch.autograd.grad(factor * loss, (x, p), retain_graph=True)
        torch.testing.assert_close(scaled, tuple(factor * gradient for gradient in once))
