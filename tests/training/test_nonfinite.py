"""Steps that are not finite, in the training loop itself."""

import pytest
import torch
from test_loop import Setting

from orthoproxy.core.errors import InputError
from orthoproxy.losses import Objective, SoftOrthogonality
from orthoproxy.models import Encoder
from orthoproxy.training import Diverged, Plan


@pytest.fixture
def setting(tmp_path, image_folder):
    encoder = Encoder("test_byobnet", embedding_dim=8, image_size=32, freeze_batchnorm=False)
    return Setting(tmp_path, encoder, image_folder)


def poison(setting, row):
    """Let an image have pixels that are not numbers."""
    dataset, take = setting.loader.dataset, type(setting.loader.dataset).__getitem__

    class Poisoned(type(dataset)):
        def __getitem__(self, draw):
            pixels, label = take(self, draw)
            pixels = pixels / 255
            return (pixels * torch.nan if draw[0] == row else pixels), label

    dataset.__class__ = Poisoned


def test_statistics_of_live_batch_norm_are_as_before_a_step_that_is_left_out(setting):
    poison(setting, row=5)
    setting.fit(Plan(epochs=2, log_every=1))
    assert [record["bad_batches"] for record in setting.records if "bad_batches" in record] == [1, 2]
    assert sum("loss" in record for record in setting.records) == 4
    buffers = dict(setting.encoder.named_buffers())
    assert any(name.endswith("running_mean") and x.abs().sum() > 0 for name, x in buffers.items())
    assert all(x.isfinite().all() for x in buffers.values())
    assert {int(x) for name, x in buffers.items() if name.endswith("num_batches_tracked")} == {4}


class NoNumber(torch.nn.Module):
    """A loss that is finite, but whose gradient is not; or neither."""

    def __init__(self, finite):
        super().__init__()
        self.proxies, self.finite = torch.nn.Parameter(torch.ones(3, 8)), finite

    def forward(self, embeddings, labels):
        zero = (embeddings * self.proxies[labels]).sum() * 0
        return zero.abs().sqrt() if self.finite else zero + torch.inf


@pytest.mark.parametrize(("finite", "what"), [(True, "a gradient is not finite"), (False, "the loss is inf")])
def test_what_is_not_finite_is_named_with_the_images(setting, finite, what):
    setting.objective = setting.checkpoints.objective = Objective(NoNumber(finite), 3, SoftOrthogonality())
    setting.optimizer.param_groups.pop()  # of the other objective's proxies
    before = setting.parameters()
    with pytest.raises(Diverged, match=rf"^{what} at step 1, of .*\.png, .*\.png, .*\.png and 1 more; 1 such steps"):
        setting.fit(Plan(epochs=1, max_bad_batches=0))
    after = setting.parameters()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert setting.checkpoints.path("last").is_file()


def test_an_epoch_without_a_finite_loss_teaches_nothing_and_ends_the_training(setting):
    setting.objective = Objective(NoNumber(finite=False), 3, SoftOrthogonality())
    validated = []
    with pytest.raises(InputError, match=r"no loss of the epoch is finite at step 3: training\.rates"):
        setting.fit(Plan(epochs=1), validate=lambda: validated.append(1) or {"map@r": 1.0})
    assert not validated and not setting.checkpoints.path("last").exists()


@pytest.mark.parametrize("error", [InputError("gone"), ValueError("a fault")])
def test_an_error_of_the_loader_saves_the_steps_before_it(setting, error):
    dataset, epochs = setting.loader.dataset, iter(range(100))

    class Failing(type(dataset)):
        def __getitem__(self, draw):
            if next(epochs) == 9:  # in the third step
                raise error
            return super().__getitem__(draw)

    dataset.__class__ = Failing
    with pytest.raises(type(error), match=str(error)):
        setting.fit(Plan(epochs=1))
    assert setting.checkpoints.load("last").step == 2
