"""The sum of a loss and Soft Orthogonality, and the vectors that stand for the classes."""

import pytest
import torch
from errors import error_of
from torch import Tensor, nn

from orthoproxy.losses import Objective, SoftOrthogonality, make_loss, make_miner, make_regularizer, soft_orthogonality
from orthoproxy.losses.objective import CLASS_VECTORS

# LargeMarginSoftmaxLoss and SphereFaceLoss call SciPy with tensors, which NumPy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")

ONE_VECTOR = sorted({"proxy_anchor", *CLASS_VECTORS} - {"SoftTripleLoss", "SubCenterArcFaceLoss"})
SEVERAL = [("SoftTripleLoss", {"centers_per_class": 3}), ("SubCenterArcFaceLoss", {"sub_centers": 3})]
SIZES = [(6, 6), (5, 8), (9, 8)]  # C = D too: rows and columns cannot be told apart by their number


def objective(name: str, num_classes: int, dim: int, args: dict | None = None, weight: float = 1.0) -> Objective:
    torch.manual_seed(0)
    return Objective(make_loss(name, num_classes, dim, args), num_classes, SoftOrthogonality(), weight)


def unit_rows(num_classes: int, dim: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(num_classes, dim, generator=generator))


def nearest_class(loss: nn.Module, embedding: Tensor, num_classes: int) -> int:
    """The label under which the loss is least for an embedding: asks the loss alone."""
    with torch.no_grad():
        values = [float(loss(embedding[None], torch.tensor([label]))) for label in range(num_classes)]
    return min(range(num_classes), key=values.__getitem__)


@pytest.mark.parametrize(("num_classes", "dim"), SIZES)
@pytest.mark.parametrize("name", ONE_VECTOR)
def test_a_class_vector_is_the_one_that_the_loss_draws_the_class_to(name: str, num_classes: int, dim: int) -> None:
    made = objective(name, num_classes, dim)
    assert made.class_vectors().shape == (num_classes, dim)
    vectors = unit_rows(num_classes, dim)
    made.set_class_vectors(vectors)
    assert torch.equal(made.class_vectors(), vectors)
    assert [nearest_class(made.loss, vector, num_classes) for vector in vectors] == list(range(num_classes))


@pytest.mark.parametrize(("num_classes", "dim"), [(16, 16), (6, 18), (18, 6)])
@pytest.mark.parametrize(("name", "args"), SEVERAL)
def test_with_several_centers_the_class_vector_is_their_mean(name: str, args: dict, num_classes: int, dim: int) -> None:
    made = objective(name, num_classes, dim, args)
    (parameter,) = made.loss.parameters()
    centers = nn.functional.normalize(parameter.detach().T)  # C * 3 rows
    parameter.data = centers.T.contiguous()
    owner = torch.arange(3 * num_classes) // 3
    if dim > 10:  # enough room for each center to be far from the others
        assert [nearest_class(made.loss, center, num_classes) for center in centers] == owner.tolist()
    means = torch.stack([centers[owner == c].mean(dim=0) for c in range(num_classes)])
    torch.testing.assert_close(made.class_vectors(), means)


@pytest.mark.parametrize(("name", "args"), SEVERAL)
def test_several_centers_start_near_their_vector_and_apart(name: str, args: dict) -> None:
    made = objective(name, 6, 16, args)
    vectors = 5 * unit_rows(6, 16)
    made.set_class_vectors(vectors)
    (parameter,) = made.loss.parameters()
    centers = parameter.detach().T.reshape(6, 3, 16)
    distance = (centers - vectors[:, None]).norm(dim=2) / 5
    assert ((distance > 0.02) & (distance < 0.3)).all()
    assert ((centers[:, 0] - centers[:, 1]).norm(dim=1) > 0.1).all()
    assert [nearest_class(made.loss, vector, 6) for vector in unit_rows(6, 16)] == list(range(6))


@pytest.mark.parametrize(("num_classes", "dim"), SIZES)
@pytest.mark.parametrize(("name", "args"), [*((name, {}) for name in ONE_VECTOR), *SEVERAL])
def test_the_regularizer_reaches_the_class_vectors(name: str, args: dict, num_classes: int, dim: int) -> None:
    made = objective(name, num_classes, dim, args, weight=0.25)
    x, labels = unit_rows(7, dim, seed=1), torch.arange(7) % num_classes
    parts = made(x, labels)
    (parameter,) = made.loss.parameters()
    (gradient,) = torch.autograd.grad(parts["regularizer"], parameter, retain_graph=True)
    vectors = made.class_vectors().detach().requires_grad_()
    expected = soft_orthogonality(vectors)
    expected.backward()
    assert float(parts["regularizer"].detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    per_class = gradient if CLASS_VECTORS[type(made.loss).__name__] == "proxies" else gradient.T
    torch.testing.assert_close(per_class.reshape(num_classes, -1, dim).sum(dim=1), vectors.grad, rtol=1e-4, atol=1e-5)
    assert vectors.grad.abs().max() > 1e-3
    torch.testing.assert_close(parts["loss"], parts["metric_loss"] + 0.25 * parts["regularizer"])


def test_weight_zero_leaves_the_regularizer_out_but_reports_it() -> None:
    made = objective("proxy_anchor", 5, 8, weight=0.0)
    parts = made(unit_rows(4, 8, seed=1), torch.tensor([0, 0, 1, 2]))
    assert torch.equal(parts["loss"], parts["metric_loss"])
    assert float(parts["regularizer"]) == pytest.approx(float(soft_orthogonality(made.loss.proxies.detach())))
    assert not parts["regularizer"].requires_grad


def test_pair_losses_have_no_class_vectors_and_take_no_weight() -> None:
    made = objective("TripletMarginLoss", 4, 8, weight=0.0)
    assert made.class_vectors() is None
    assert set(made(unit_rows(6, 8), torch.arange(6) % 2)) == {"loss", "metric_loss"}
    assert error_of(objective, "TripletMarginLoss", 4, 8, weight=0.1).field == "weight"


@pytest.mark.parametrize("name", ["proxy_anchor", "RankedListLoss", "P2SGradLoss", "InstanceLoss", "PNPLoss"])
def test_a_miner_beside_a_loss_that_takes_none_is_an_error_when_built(name: str) -> None:
    loss = make_loss(name, 4, 8, {"margin": 0.4, "Tn": 1} if name == "RankedListLoss" else {})
    assert error_of(Objective, loss, 4, SoftOrthogonality(), miner=make_miner("BatchHardMiner")).field == "miner"


def test_a_sharded_loss_beside_a_regularizer_of_whole_proxies_is_an_error() -> None:
    loss = make_loss("proxy_anchor", 4, 8, shard_proxies=True)
    assert error_of(Objective, loss, 4, make_regularizer("koleo")).field == "regularizer"
    assert Objective(loss, 4, make_regularizer("soft_orthogonality")).sharded_loss is loss


@pytest.mark.parametrize("name", ["proxy_anchor", "ProxyAnchorLoss", "ArcFaceLoss", "SoftTripleLoss", "P2SGradLoss"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_embeddings_leave_parameters_and_values_in_float32(name: str, dtype: torch.dtype) -> None:
    made = objective(name, 5, 8)
    x, labels = unit_rows(6, 8, seed=1).to(dtype), torch.arange(6) % 5
    expected = made(x.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = made(x, labels)
    parts["loss"].backward()
    for part, value in parts.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[part])
    assert all(parameter.dtype == parameter.grad.dtype == torch.float32 for parameter in made.parameters())
