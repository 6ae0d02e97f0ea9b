"""The training loop, on a few images and a tiny encoder."""

import copy
import os
import signal

import pytest
import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader

from orthoproxy.core.errors import InputError
from orthoproxy.data import BatchSampler, TrainingImages, evaluation_transform, folder_table, training_transform
from orthoproxy.losses import Objective, ProxyAnchorLoss, SoftOrthogonality
from orthoproxy.training import Checkpoints, Interrupted, Plan, fit, make_optimizer


class Setting:
    """All that `fit` takes, on the three classes of `image_folder`."""

    def __init__(self, folder, encoder, images, batch_size=4):
        torch.manual_seed(0)
        table = folder_table(images)
        labels = table["label"].astype("category").cat.codes.astype(int).tolist()
        self.encoder = copy.deepcopy(encoder)
        self.objective = Objective(ProxyAnchorLoss(3, 8), 3, SoftOrthogonality(), weight=0.1)
        self.optimizer = make_optimizer(self.encoder, self.objective, 1e-3, 1e-3, 1e-2, 1e-4)
        self.sampler = BatchSampler(labels, batch_size)
        dataset = TrainingImages(table["path"].tolist(), labels, training_transform(32))
        self.loader = DataLoader(dataset, batch_sampler=self.sampler, generator=torch.Generator())
        self.checkpoints = Checkpoints(folder, self.encoder, self.objective, self.optimizer)
        self.records = []

    def fit(self, plan, validate=None, position=None, log=None, precision="32-true"):
        return fit(
            Fabric(accelerator="cpu", devices=1, precision=precision),
            self.encoder,
            self.objective,
            self.optimizer,
            self.loader,
            self.sampler,
            plan,
            self.checkpoints,
            log or self.records.append,
            validate,
            position,
        )

    def parameters(self):
        return {
            name: p.detach().clone() for part in (self.encoder, self.objective) for name, p in part.named_parameters()
        }


@pytest.fixture
def setting(tmp_path, tiny_encoder, image_folder):
    return Setting(tmp_path, tiny_encoder, image_folder)


def test_the_loss_falls_and_everything_moves(setting):
    before = setting.parameters()
    setting.fit(Plan(epochs=8, log_every=1))
    after = setting.parameters()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert (before["loss.proxies"] != after["loss.proxies"]).any(dim=1).all()  # each proxy
    losses = [record["loss"] for record in setting.records]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_records_hold_losses_rates_and_throughput(setting):
    setting.fit(Plan(epochs=2, log_every=1, rate_factor=lambda step: 1 / (1 + step)))
    assert [record["step"] for record in setting.records] == [1, 2, 3, 4, 5, 6]
    assert [record["epoch"] for record in setting.records] == [1, 1, 1, 2, 2, 2]
    record = setting.records[2]
    assert record["loss"] == pytest.approx(record["metric_loss"] + 0.1 * record["orthogonality"], rel=1e-6)
    assert record["rate/backbone"] == pytest.approx(1e-3 / 3)
    assert record["rate/proxies"] == pytest.approx(1e-2 / 3)
    assert record["images_per_second"] > 0


def test_the_backbone_rests_while_frozen(setting):
    before = setting.parameters()
    setting.fit(Plan(epochs=1, freeze_steps=3))
    after = setting.parameters()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"projection.weight", "projection.bias", "loss.proxies"}
    setting.fit(Plan(epochs=1, freeze_steps=0))
    assert not torch.equal(after["backbone.cls_token"], setting.parameters()["backbone.cls_token"])


class MeanOverImages(torch.nn.Module):
    """A loss that is a mean over the images, so that two batches weigh as much as one twice the size."""

    def __init__(self):
        super().__init__()
        self.proxies = torch.nn.Parameter(torch.linspace(-1, 1, 24).view(3, 8))

    def forward(self, embeddings, labels):
        return (embeddings * self.proxies[labels]).sum(dim=1).mean()


def test_accumulated_gradients_are_averaged_into_one_step(tmp_path, tiny_encoder, image_folder):
    gradients = []
    for batch_size, accumulate in ((6, 1), (3, 2)):
        setting = Setting(tmp_path, tiny_encoder, image_folder, batch_size)
        setting.objective = Objective(MeanOverImages(), 3, SoftOrthogonality())
        setting.optimizer = make_optimizer(setting.encoder, setting.objective, 0.0, 0.0, 0.0, 0.0)
        seen = []
        setting.optimizer.register_step_pre_hook(
            lambda optimizer, *_, seen=seen: seen.append(
                torch.cat([p.grad.flatten() for g in optimizer.param_groups for p in g["params"]])
            )
        )
        # the same images in the same views: the sampler's order does not depend on the batch size
        setting.loader.dataset.transform = evaluation_transform(32)
        position = setting.fit(Plan(epochs=1, accumulate=accumulate))
        assert position.step == len(seen) == 2
        gradients.append(seen)
    for whole, accumulated in zip(*gradients, strict=True):
        torch.testing.assert_close(accumulated, whole, rtol=1e-3, atol=1e-6)


def test_a_batch_left_over_is_a_step_of_its_own(setting):
    assert setting.fit(Plan(epochs=1, accumulate=2)).step == 2  # of three batches


def test_weights_that_have_diverged_are_neither_judged_nor_saved(setting):
    for group in setting.optimizer.param_groups:
        group["highest_rate"] = float("inf")
    validated = []
    with pytest.raises(InputError, match=r"not finite at step|the loss is nan at step"):
        setting.fit(Plan(epochs=2, log_every=1000), validate=lambda: validated.append(1) or {"map@r": 1.0})
    assert not validated and not setting.checkpoints.path("last").exists()


def test_bfloat16_trains_float32_weights(setting):
    before = setting.parameters()
    setting.fit(Plan(epochs=1, log_every=1), precision="bf16-mixed")
    after = setting.parameters()
    assert all(after[name].dtype == torch.float32 and not torch.equal(after[name], before[name]) for name in before)
    assert all(torch.tensor(record["loss"]).isfinite() for record in setting.records)


def test_clipping_bounds_the_gradient(setting):
    seen = []
    setting.optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.append([p.grad for g in optimizer.param_groups for p in g["params"]])
    )
    norms = []
    setting.optimizer.register_step_pre_hook(
        lambda *_: norms.append(torch.cat([grad.flatten() for grad in seen[-1]]).norm().item())
    )
    setting.fit(Plan(epochs=1, clip_norm=0.01))
    assert max(norms) <= 0.01 * (1 + 1e-4)
    largest = []
    setting.optimizer.register_step_pre_hook(lambda *_: largest.append(max(g.abs().max().item() for g in seen[-1])))
    setting.fit(Plan(epochs=1, clip_value=1e-5))
    assert max(largest) <= 1e-5 * (1 + 1e-6)


def test_the_best_checkpoint_is_kept_and_patience_ends_the_run(setting):
    scores = iter([0.1, 0.5, 0.4, 0.5, 0.9])
    position = setting.fit(Plan(epochs=5, patience=2), validate=lambda: {"map@r": next(scores)})
    assert (position.epoch, position.best, position.best_epoch) == (4, 0.5, 2)  # a tie is no improvement
    assert setting.checkpoints.load("best").epoch == 2
    validations = [record["validation/map@r"] for record in setting.records if "validation/map@r" in record]
    assert validations == [0.1, 0.5, 0.4, 0.5]


def test_validation_comes_every_so_many_epochs_and_at_the_end(setting):
    epochs = []
    setting.fit(
        Plan(epochs=5, validate_every=2),
        validate=lambda: {"map@r": 0.5},
        log=lambda record: epochs.append(record["epoch"]) if "validation/map@r" in record else None,
    )
    assert epochs == [2, 4, 5]


def test_a_loss_that_is_not_finite_stops_the_run(setting):
    with torch.no_grad():
        setting.objective.loss.proxies[0] = torch.nan
    with pytest.raises(InputError, match=r"the loss is nan at step 1: training\.rates"):
        setting.fit(Plan(epochs=1, log_every=1))
    assert not setting.checkpoints.path("last").exists()


@pytest.mark.parametrize("stop_at", [2, 3, 5])  # in the first epoch, at its end, in the second
def test_ctrl_c_stops_after_the_step_and_resuming_gives_the_same_bits(tmp_path, tiny_encoder, image_folder, stop_at):
    tiny_encoder.backbone.pos_drop.p = 0.1  # training draws random numbers
    whole = Setting(tmp_path / "whole", tiny_encoder, image_folder)
    whole.fit(Plan(epochs=3, log_every=1))

    stopped = Setting(tmp_path / "stopped", tiny_encoder, image_folder)

    def log(record):
        stopped.records.append(record)
        if record["step"] == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted):
        stopped.fit(Plan(epochs=3, log_every=1), log=log)
    assert signal.getsignal(signal.SIGINT) == handler

    resumed = Setting(tmp_path / "stopped", tiny_encoder, image_folder)
    torch.manual_seed(123)
    position = resumed.checkpoints.load("last")
    assert position.step == stop_at
    resumed.fit(Plan(epochs=3, log_every=1), position=position)
    after, expected = resumed.parameters(), whole.parameters()
    assert all(torch.equal(after[name], expected[name]) for name in expected)
    steps = [record["step"] for record in stopped.records + resumed.records]
    assert steps == [record["step"] for record in whole.records]
    losses = [record["loss"] for record in stopped.records + resumed.records]
    assert losses == [record["loss"] for record in whole.records]
