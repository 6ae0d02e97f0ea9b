"""The training loop, on a few images and a tiny encoder."""

import copy
import itertools
import math
import signal

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader
from training_job import make_job

from orthoproxy.core.errors import DivergedError
from orthoproxy.data.datasets import TrainingFeatures
from orthoproxy.losses import Objective, SoftOrthogonality, make_loss
from orthoproxy.models import Encoder
from orthoproxy.training import make_optimizer
from orthoproxy.training.checkpoint import Checkpoints, TrainingState
from orthoproxy.training.loop import _EncoderInParts
from orthoproxy.training.nonfinite import require_finite_weights
from orthoproxy.training.signals import Interrupted


class CountCalls(TorchFunctionMode):
    """Counts calls of functions and tensor methods by name."""

    def __init__(self, *names):
        super().__init__()
        self.names, self.count = names, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += getattr(func, "__name__", "") in self.names
        return func(*args, **(kwargs or {}))


# what reads a tensor's value into Python; on a GPU, each read waits for the device
READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero")


@pytest.fixture
def job(tmp_path, tiny_encoder, image_folder):
    return make_job(tmp_path, tiny_encoder, image_folder)


def test_the_loss_falls_and_every_parameter_moves(job):
    before = job.parameters()
    job.fit(epochs=8, log_every_n_steps=1)
    after = job.parameters()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert (before["loss.proxies"] != after["loss.proxies"]).any(dim=1).all()  # each proxy
    losses = [record["loss"] for record in job.records]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_records_hold_losses_learning_rates_and_throughput(job):
    job.fit(epochs=2, log_every_n_steps=1, lr_factor=lambda step: 1 / (1 + step))
    assert [record["step"] for record in job.records] == [1, 2, 3, 4, 5, 6]
    assert [record["epoch"] for record in job.records] == [1, 1, 1, 2, 2, 2]
    record = job.records[2]
    assert record["loss"] == pytest.approx(record["metric_loss"] + 0.1 * record["regularizer"], rel=1e-6)
    assert record["lr/backbone"] == pytest.approx(1e-3 / 3)
    assert record["lr/proxies"] == pytest.approx(1e-2 / 3)
    assert record["images_per_second"] > 0


def test_a_frozen_backbone_does_not_move(job):
    before = job.parameters()
    job.fit(freeze_backbone_steps=3)
    after = job.parameters()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"projection.weight", "projection.bias", "loss.proxies"}
    job.fit(freeze_backbone_steps=0)
    assert not torch.equal(after["backbone.cls_token"], job.parameters()["backbone.cls_token"])


def test_averaged_weights_follow_the_weights(job):
    job.average = AveragedModel(job.encoder, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    expected = []

    def follow(*_):
        weight = job.encoder.projection.weight.detach().double()
        expected.append(0.8 * expected[-1] + 0.2 * weight if expected else weight.clone())

    job.optimizer.register_step_post_hook(follow)
    job.fit(epochs=2)
    torch.testing.assert_close(job.average.module.projection.weight.double(), expected[-1], rtol=1e-5, atol=1e-6)


def gradient(optimizer):
    return torch.cat([p.grad.flatten() for group in optimizer.param_groups for p in group["params"]])


def test_gradients_of_parts_are_those_of_the_whole_batch(tmp_path, tiny_encoder, image_folder):
    gradients = []
    for parts in (1, 4):
        job = make_job(tmp_path, tiny_encoder.double(), image_folder, batch_size=6)
        job.objective.double()
        job.optimizer.register_step_pre_hook(lambda optimizer, *_: gradients.append(gradient(optimizer)))
        torch.manual_seed(1)
        assert job.fit(gradient_accumulation_steps=parts).step == 2
    torch.testing.assert_close(gradients[2:], gradients[:2], rtol=1e-9, atol=1e-10)


def test_parts_move_running_statistics_once():
    encoder, found = Encoder("test_byobnet", embedding_dim=8, image_size=32, freeze_batchnorm=False), []
    batch = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for parts in (1, 2):
        model = _EncoderInParts(copy.deepcopy(encoder), parts, fused_attention=True).train()
        for _ in range(2 // parts):  # two equal batches, one after the other or as parts of one
            model(batch.repeat(parts, 1, 1, 1)).sum().backward()
        found.append(dict(model.named_buffers()))
    assert next(x for name, x in found[1].items() if name.endswith("num_batches_tracked")) == 2
    assert all(torch.equal(x, found[1][name]) for name, x in found[0].items())


def test_diverged_weights_are_neither_validated_nor_saved(job):
    for group in job.optimizer.param_groups:
        group["peak_lr"] = float("inf")
    validated = []
    job.validate = lambda: validated.append(1) or {"map@r": 1.0}
    with pytest.raises(DivergedError):
        job.fit(epochs=2, log_every_n_steps=1000)
    assert not validated and not job.checkpoints.path("last").exists()


def skip_the_first(job, steps):
    """Make the loss of the first steps not finite."""
    forward, calls = job.objective.forward, itertools.count()

    def not_finite_at_first(*batch):
        factor = math.nan if next(calls) < steps else 1
        return {name: factor * value for name, value in forward(*batch).items()}

    job.objective.forward = not_finite_at_first


def test_skipped_steps_are_listed_when_a_signal_comes_before_the_next_record(job):
    skip_the_first(job, 1)
    job.optimizer.register_step_post_hook(lambda *_: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        job.fit(log_every_n_steps=1000)
    assert (job.checkpoints.folder / "nonfinite_steps.csv").read_text().startswith("1,")


def test_an_epoch_without_a_finite_step_is_an_error_but_not_its_end_after_resuming(job):
    skip_the_first(job, 1)
    assert job.fit(TrainingState(step=2, batch=2)).step == 3
    skip_the_first(job, 3)
    with pytest.raises(DivergedError):
        job.fit()


@pytest.mark.parametrize(("precision", "parts"), [("bf16-mixed", 1), ("bf16-mixed", 2), ("32-true", 1)])
def test_bfloat16_trains_float32_weights_unfused(tmp_path, tiny_encoder, image_folder, precision, parts):
    job = make_job(tmp_path, tiny_encoder, image_folder, precision=precision)
    before = job.parameters()
    with CountCalls("scaled_dot_product_attention") as training:
        job.fit(log_every_n_steps=1, gradient_accumulation_steps=parts)
    after = job.parameters()
    assert all(after[name].dtype == torch.float32 and not torch.equal(after[name], before[name]) for name in before)
    assert all(torch.tensor(record["loss"]).isfinite() for record in job.records)
    with CountCalls("scaled_dot_product_attention") as evaluation:
        job.encoder(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert (training.count > 0, evaluation.count > 0) == (precision == "32-true", True)


def test_clipping_bounds_the_gradient(job):
    seen = []
    job.optimizer.register_step_pre_hook(lambda optimizer, *_: seen.append(gradient(optimizer)))
    job.fit(grad_clip_norm=0.01)
    assert max(x.norm().item() for x in seen) <= 0.01 * (1 + 1e-4)
    seen.clear()
    job.fit(grad_clip_value=1e-5)
    assert max(x.abs().max().item() for x in seen) <= 1e-5 * (1 + 1e-6)


def test_the_best_checkpoint_is_kept_and_patience_ends_training(job):
    scores = iter([0.1, 0.5, 0.4, 0.5, 0.9])
    job.validate = lambda: {"map@r": next(scores)}
    state = job.fit(epochs=5, early_stopping_patience=2)
    assert (state.epoch, state.best_score, state.best_epoch) == (4, 0.5, 2)  # a tie is no improvement
    assert job.checkpoints.load("best").epoch == 2
    validations = [record["validation/map@r"] for record in job.records if "validation/map@r" in record]
    assert validations == [0.1, 0.5, 0.4, 0.5]


def test_validation_runs_every_n_epochs_and_at_the_end(job):
    job.validate = lambda: {"map@r": 0.5}
    job.fit(epochs=5, validate_every_n_epochs=2)
    assert [record["epoch"] for record in job.records if "validation/map@r" in record] == [2, 4, 5]


@pytest.mark.parametrize("options", [{}, {"grad_clip_norm": 1.0}, {"gradient_accumulation_steps": 2}])
def test_values_are_read_only_when_a_record_is_logged(tmp_path, tiny_encoder, image_folder, options):
    reads = {}
    for batch_size, every in ((1, 1), (1, 1000), (4, 1000)):
        job = make_job(tmp_path, tiny_encoder, image_folder, batch_size)
        features = torch.randn(len(job.loader.dataset), tiny_encoder.feature_dim)
        dataset = TrainingFeatures(features, job.loader.dataset.labels)
        job.loader = DataLoader(dataset, batch_sampler=job.sampler, collate_fn=lambda batch: batch)
        loss = make_loss("NormalizedSoftmaxLoss", 3, 8)  # Proxy Anchor checks labels on a CPU
        job.objective = Objective(loss, 3, SoftOrthogonality())
        job.optimizer = make_optimizer(job.encoder, job.objective, 1e-3, 1e-3, 1e-2, 1e-4)
        job.checkpoints = Checkpoints(tmp_path, job.encoder, job.objective, job.optimizer)
        with CountCalls(*READS) as counter:
            state = job.fit(log_every_n_steps=every, **options)
        reads[batch_size, every] = counter.count, state.step
    (often, steps), (rarely, _), (fewer_steps, few) = reads.values()
    assert steps >= few + 3
    assert rarely == fewer_steps  # however many steps
    assert often == rarely + 2 * (steps - 1)  # losses and skipped steps, once a record


def test_weights_are_checked_with_a_single_read(job):
    with CountCalls(*READS) as counter:
        require_finite_weights(job.encoder, job.objective, TrainingState())
    assert counter.count == 1
