"""For those who have a CUDA device: `pytest -m gpu`. What is computed there is what the processor computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import orthoproxy
from orthoproxy.losses import Objective, ProxyAnchorLoss, SoftOrthogonality
from orthoproxy.runs import config as c

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("classes", [10, 3000])
def test_the_objective_and_its_gradients(classes: int) -> None:
    torch.manual_seed(0)
    objective = Objective(ProxyAnchorLoss(classes, 64), classes, SoftOrthogonality(scaling="excess"), weight=0.3)
    x, labels = torch.randn(40, 64, requires_grad=True), torch.randint(classes, (40,))
    objective(x, labels)["loss"].backward()
    there = Objective(ProxyAnchorLoss(classes, 64), classes, SoftOrthogonality(scaling="excess"), weight=0.3).cuda()
    there.load_state_dict(objective.state_dict())
    moved = x.detach().cuda().requires_grad_()
    there(moved, labels.cuda())["loss"].backward()
    torch.testing.assert_close(moved.grad.cpu(), x.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(there.loss.proxies.grad.cpu(), objective.loss.proxies.grad, rtol=1e-4, atol=1e-6)


def test_a_step_waits_for_nothing(tiny_encoder) -> None:
    """Forward, objective, backward and optimiser: no value is fetched from the device."""
    encoder = tiny_encoder.cuda()
    objective = Objective(ProxyAnchorLoss(9, 8), 9, SoftOrthogonality(), weight=0.1).cuda()
    optimizer = torch.optim.AdamW([*encoder.parameters(), *objective.parameters()], fused=True)
    images, labels = torch.rand(6, 3, 32, 32).cuda(), torch.arange(6).cuda()
    for careful in (False, True):  # the first step allocates
        torch.cuda.set_sync_debug_mode("error" if careful else "default")
        try:
            objective(encoder(images), labels)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_run(image_folder: Path, tmp_path: Path) -> None:
    run = orthoproxy.train(
        c.Config(
            data=c.Data(name="folder", root=str(image_folder), test_classes=["red"], workers=1),
            encoder=c.Encoder(name="test_vit", weights="none", embedding_dim=8, image_size=32),
            training=c.Training(epochs=2, batch_size=4, accelerator="cuda", select_on="none"),
        ),
        tmp_path / "run",
    )
    assert run.scores["model"]["recall@1"]["value"] == 1.0
