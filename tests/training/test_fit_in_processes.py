"""Several processes train as one: the same loss, gradients and weights as a single process, in double precision."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from many import distance, in_processes
from torch import Tensor, nn
from torch.utils.data import Dataset
from training_job import Job

from orthoproxy.core.distributed import gather_to_main, process_count, process_index
from orthoproxy.data import BatchSampler
from orthoproxy.losses import Objective, ProxyAnchorLoss, SoftOrthogonality
from orthoproxy.models import Encoder

CLASSES, DIM = 7, 8  # not divisible by 2 or 4


class RandomImages(Dataset):
    """Random pixels, augmented by the seed drawn for each."""

    def __init__(self, labels: list[int]) -> None:
        self.labels = labels
        self.images = torch.randint(256, (len(labels), 3, 32, 32), generator=torch.Generator().manual_seed(0))

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Tensor, int]:
        row, seed = draw
        return (self.images[row] // (1 + seed % 3)).to(torch.uint8), self.labels[row]


class Noisy(nn.Module):
    """A loss that draws random numbers, as some miners do."""

    def __init__(self) -> None:
        super().__init__()
        self.proxies = nn.Parameter(torch.randn(CLASSES, DIM))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        weights = torch.rand(len(labels), dtype=embeddings.dtype)
        return -(weights * (embeddings * self.proxies[labels]).sum(dim=1)).mean()


def make_job(encoder: Encoder, kind: str, folder: Path, images: int, classes: int, dtype: torch.dtype) -> Job:
    count, dim = process_count(), encoder.embedding_dim or encoder.feature_dim
    # 32-true touches no tensor; 64-true would round embeddings to single precision
    strategy = "ddp" if count > 1 else "auto"
    fabric = Fabric(accelerator="cpu", devices=count, strategy=strategy, precision="32-true")
    fabric.launch()
    torch.manual_seed(1)
    loss = ProxyAnchorLoss(classes, dim, sharded=kind == "sharded")
    term = SoftOrthogonality(scaling="excess")
    objective = Objective(Noisy() if kind == "noisy" else loss, classes, term, weight=0.0 if kind == "noisy" else 0.3)
    if kind == "noisy":
        torch.manual_seed(process_index())
    labels = [row % CLASSES for row in range(images)]
    sampler = BatchSampler(labels, batch_size=10, rank=process_index(), world_size=count)
    rates = (1e-4, 1e-4, 1e-2)
    return Job(folder, fabric, encoder.to(dtype), objective.to(dtype), rates, RandomImages(labels), sampler)


def tensors(job: Job, gradients: bool = False) -> dict[str, Tensor]:
    """All weights or gradients, with the proxies of all processes on the main one."""

    def select(parameter: nn.Parameter) -> Tensor:
        if not gradients:
            return parameter.detach().clone()
        return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()

    found = {name: select(parameter) for name, parameter in job.encoder.named_parameters()}
    proxies = select(next(job.objective.parameters()))
    sharded = job.objective.sharded_loss
    whole = proxies if sharded is None else gather_to_main(proxies, sharded.sizes)
    return found if whole is None else {**found, "proxies": whole}


def train(encoder, kind="whole", folder=None, images=40, classes=CLASSES, dtype=torch.float64, **options: Any):
    """Train; return losses, the gradients of the first step and the weights at the end."""
    job = make_job(encoder, kind, folder or Path(), images, classes, dtype)
    if folder is None:
        job.checkpoints.save = lambda name, state: None
    gradients: list[dict[str, Tensor]] = []
    job.optimizer.register_step_pre_hook(lambda *_: gradients.append(tensors(job, gradients=True)))
    job.fit(log_every_n_steps=1, **options)
    losses = [record["loss"] for record in job.records]
    return {"losses": losses, "gradients": gradients[0], "weights": tensors(job)}


def in_several(count: int, encoder: Encoder, kind: str = "whole", *args: Any, **options: Any) -> list[dict[str, Any]]:
    return in_processes(count, lambda: train(encoder, kind, *args, **options))


def make_encoder(name: str = "test_vit", **options: Any) -> Encoder:
    torch.manual_seed(0)
    return Encoder(name, embedding_dim=DIM, image_size=32, **options)


def assert_equal_bits(results: list[dict[str, Any]]) -> None:
    for other in results[1:]:
        assert all(torch.equal(x, results[0]["weights"][name]) for name, x in other["weights"].items())


KINDS = pytest.mark.parametrize("kind", ["whole", "sharded"])


@KINDS
@pytest.mark.parametrize(("count", "images", "epochs"), [
    pytest.param(4, 40, 5, id="unequal parts"), pytest.param(2, 40, 5, id="halves", marks=pytest.mark.slow),
    pytest.param(4, 3, 20, id="fewer images than processes", marks=pytest.mark.slow),
])  # fmt: skip
def test_weights_after_twenty_steps_are_those_of_one_process(count: int, images: int, epochs: int, kind: str) -> None:
    encoder = make_encoder()
    one = train(encoder, images=images, epochs=epochs)
    several = in_several(count, encoder, kind, images=images, epochs=epochs)
    assert several[0]["losses"] == pytest.approx(one["losses"], rel=1e-6) and len(one["losses"]) == 20
    assert distance(several[0]["gradients"], one["gradients"]) < 1e-9
    assert distance(several[0]["weights"], one["weights"]) < 1e-8
    assert not any(other["losses"] for other in several[1:])  # only the main process logs
    assert_equal_bits(several)


@KINDS
@pytest.mark.parametrize(("dim", "options"), [
    (DIM, {"epochs": 2, "freeze_backbone_steps": 2, "gradient_accumulation_steps": 2, "grad_clip_norm": 0.5,
           "grad_clip_value": 0.1}),
    (None, {"freeze_backbone_steps": 10}),  # leaves nothing for DDP
])  # fmt: skip
def test_freezing_accumulation_and_clipping(dim: int | None, options: dict[str, Any], kind: str) -> None:
    encoder = Encoder("test_vit", embedding_dim=dim, image_size=32)
    one, several = train(encoder, **options), in_several(2, encoder, kind, **options)
    assert distance(several[0]["weights"], one["weights"]) < 1e-9
    assert several[0]["losses"] == pytest.approx(one["losses"], rel=1e-9)


def test_a_repetition_gives_the_same_bits_in_single_precision() -> None:
    first, second = (in_several(2, make_encoder(), "sharded", dtype=torch.float32) for _ in range(2))
    assert first[0]["losses"] == second[0]["losses"]
    for one, other in zip(first, second, strict=True):
        assert_equal_bits([one, other])


def test_random_numbers_in_a_loss_do_not_let_processes_diverge() -> None:
    assert_equal_bits(in_several(2, make_encoder(), "noisy"))


def test_live_batch_norm_leaves_the_same_encoder_in_all_processes() -> None:
    assert_equal_bits(in_several(2, make_encoder("test_resnet", freeze_batchnorm=False), dtype=torch.float32))


def test_sharded_proxies_and_their_optimizer_state_shrink_with_the_number_of_processes(tmp_path: Path) -> None:
    sizes = {}
    for count in (1, 4):
        folder = tmp_path / str(count)
        in_several(count, make_encoder(), "sharded", folder, classes=4000, dtype=torch.float32)
        sizes[count] = [path.stat().st_size for path in sorted(folder.glob("last-step-*.proxies-*"))]
    numbers = 4000 * DIM * 4 * 3  # bytes of proxies and two moments
    assert sizes[1] == pytest.approx([numbers], rel=0.03)
    assert sizes[4] == pytest.approx([numbers / 4] * 4, rel=0.1)
