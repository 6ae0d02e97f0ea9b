"""Steps with a non-finite loss or gradient are skipped; too many end training."""

import pytest
import torch
from training_job import make_job

from orthoproxy.core.errors import DivergedError
from orthoproxy.models import Encoder


@pytest.fixture
def job(tmp_path, image_folder):
    encoder = Encoder("test_byobnet", embedding_dim=8, image_size=32, freeze_batchnorm=False)
    return make_job(tmp_path, encoder, image_folder)


def poison(job, row):
    """Give an image NaN pixels."""
    dataset = job.loader.dataset

    class Poisoned(type(dataset)):
        def __getitem__(self, seed):
            pixels, label = super().__getitem__(seed)
            pixels = pixels / 255
            return (pixels * torch.nan if seed[0] == row else pixels), label

    dataset.__class__ = Poisoned


@pytest.mark.parametrize("every", [1, 2, 1000])
def test_skipped_steps_change_nothing_but_the_count(job, every):
    poison(job, row=5)
    states = []
    job.optimizer.register_step_post_hook(lambda *_: states.append(job.parameters()))
    job.fit(epochs=2, log_every_n_steps=every)
    skipped = {x["step"]: x["nonfinite_steps"] for x in job.records if "nonfinite_steps" in x}
    assert [*skipped.values()] == [1, 2]
    assert all(x.isfinite().all() for x in job.parameters().values())
    assert all(b.isfinite().all() for b in job.encoder.buffers())  # batch-norm statistics too
    for step in skipped:
        if step > 1:
            before, after = states[step - 2], states[step - 1]
            assert all(torch.equal(before[name], after[name]) for name in job.parameters())


def test_an_epoch_without_a_finite_loss_ends_training(job):
    for row in range(len(job.loader.dataset)):
        poison(job, row)
    with pytest.raises(DivergedError):
        job.fit(log_every_n_steps=1)
    assert not job.checkpoints.path("last").exists()
