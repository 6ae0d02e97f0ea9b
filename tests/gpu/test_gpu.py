"""What runs on a GPU gives what the CPU gives, and does not wait for it. Needs CUDA: `pytest -m gpu`, or `make gpu`."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import make_config
from torch.utils.data import DataLoader
from training_job import make_job

import orthoproxy
from orthoproxy.data import make_table
from orthoproxy.data.datasets import TrainingFeatures
from orthoproxy.embedding.embedder import Embedder
from orthoproxy.evaluation import Scoring
from orthoproxy.evaluation.evaluate import mean_scores
from orthoproxy.losses import Objective, ProxyAnchorLoss, SoftOrthogonality
from orthoproxy.training.checkpoint import Checkpoints, TrainingState

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")]


def make_objective(classes: int, dim: int) -> Objective:
    return Objective(ProxyAnchorLoss(classes, dim), classes, SoftOrthogonality(scaling="excess"), weight=0.3)


@pytest.mark.parametrize("classes", [10, 3000])
def test_the_objective_and_its_gradients_equal_those_of_the_cpu(classes):
    torch.manual_seed(0)
    on_cpu, x, labels = make_objective(classes, 64), torch.randn(40, 64, requires_grad=True), torch.arange(40) % classes
    on_gpu, moved = copy.deepcopy(on_cpu).cuda(), x.detach().cuda().requires_grad_()
    expected = on_cpu(x, labels)
    found = on_gpu(moved, labels.cuda())
    expected["loss"].backward()
    found["loss"].backward()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].cpu(), value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moved.grad.cpu(), x.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(on_gpu.loss.proxies.grad.cpu(), on_cpu.loss.proxies.grad, rtol=1e-4, atol=1e-5)


@pytest.fixture
def waiting_is_an_error():
    """A function that makes the CPU's waiting for the GPU an error, or allows it again."""

    def set_mode(error: bool) -> None:
        torch.cuda.set_sync_debug_mode("error" if error else "default")

    yield set_mode
    set_mode(False)


@pytest.mark.parametrize("data", ["features", "images"])
@pytest.mark.parametrize(
    "options", [{}, {"grad_clip_norm": 1.0, "grad_clip_value": 1.0, "gradient_accumulation_steps": 2}]
)
def test_fit_waits_for_the_gpu_only_to_log(tmp_path, tiny_encoder, image_folder, waiting_is_an_error, options, data):
    job = make_job(tmp_path, tiny_encoder, image_folder, batch_size=1, precision="bf16-mixed", device="cuda")
    dataset, collate = job.loader.dataset, None
    if data == "features":
        dataset = TrainingFeatures(torch.randn(len(dataset), tiny_encoder.feature_dim), dataset.labels)
        collate = list
    job.loader = DataLoader(dataset, batch_sampler=job.sampler, collate_fn=collate, pin_memory=True)
    every, steps = 3, len(dataset) // options.get("gradient_accumulation_steps", 1)
    checked, keep = [], job.log

    def after_step(*_):  # from the first one on, which sets up libraries, unless a record follows
        checked.append(torch.cuda.get_sync_debug_mode() == 2)
        waiting_is_an_error(len(checked) % every != 0)

    def log(record):  # the epoch ends after the last record
        keep(record)
        waiting_is_an_error(record["step"] < steps)

    job.optimizer.register_step_post_hook(after_step)
    job.log = log
    job.fit(log_every_n_steps=every, **options)
    assert checked == [False] + [True] * (steps - 1)


def test_a_step_that_is_not_finite_is_skipped_on_the_gpu(tmp_path, tiny_encoder, image_folder):
    job = make_job(tmp_path, tiny_encoder, image_folder, device="cuda")
    features = torch.randn(len(job.loader.dataset), tiny_encoder.feature_dim)
    features[5] = torch.nan
    dataset = TrainingFeatures(features, job.loader.dataset.labels)
    job.loader = DataLoader(dataset, batch_sampler=job.sampler, collate_fn=list, pin_memory=True)
    job.fit(epochs=2, log_every_n_steps=1)
    assert [record["nonfinite_steps"] for record in job.records if "nonfinite_steps" in record] == [1, 2]
    assert all(x.isfinite().all() for x in job.parameters().values())


def test_a_run_in_bfloat16_with_evaluation(tmp_path, photos):
    config = make_config(photos, {"training.device": "cuda", "training.precision": "bf16-mixed"})
    run = orthoproxy.train(config, tmp_path / "run")
    assert 0 <= run.scores["model"]["recall@1"]["value"] <= 1 and run.has_report
    assert run.config.environment["gpu"] == torch.cuda.get_device_name()
    weights = run.load_model().encoder.state_dict().values()
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in weights if x.is_floating_point())


@pytest.mark.parametrize(("precision", "cosine"), [("32-true", 0.9999), ("bf16-mixed", 0.99), ("16-mixed", 0.99)])
def test_embeddings_are_near_those_of_the_cpu(tiny_encoder, precision, cosine):
    torch.manual_seed(0)
    images = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8)
    expected = Embedder(copy.deepcopy(tiny_encoder)).embed(images)
    found = Embedder(tiny_encoder, device="cuda").embed(images, batch_size=8, precision=precision)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert (found * expected).sum(axis=1).min() > cosine


@pytest.mark.parametrize("groups", [False, True])
def test_scores_equal_those_of_the_cpu(groups):
    generator = np.random.default_rng(0)
    labels = np.arange(600) // 4
    x = generator.standard_normal((150, 32))[labels] + generator.standard_normal((600, 32))
    group = [str(number % 7) for number in range(600)] if groups else ""
    table = make_table([str(number) for number in range(600)], [str(label) for label in labels], group=group)
    expected, found = (mean_scores(x, table, Scoring(device=device, block_memory_mb=1)) for device in ("cpu", "cuda"))
    assert found == pytest.approx(expected, abs=1e-9)


def test_a_million_classes_take_the_memory_of_their_state():
    classes, dim = 1_000_000, 128
    state = 20 * classes * dim  # bytes of proxies, two moments, and the gradients of loss and regularizer
    if torch.cuda.mem_get_info()[0] < 1.2 * state + 2**30:
        pytest.skip("too little free memory")
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    objective = make_objective(classes, dim).cuda()
    optimizer = torch.optim.AdamW(objective.parameters(), fused=True)
    x, labels = torch.randn(180, dim, device="cuda", requires_grad=True), torch.randint(classes, (180,), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        objective(x, labels)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.cuda.max_memory_allocated() - before < 1.05 * state + 2**27


RESUME = """
import pathlib, sys, torch
from orthoproxy.training.checkpoint import Checkpoints
layer = torch.nn.Linear(2, 2).cuda()
optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
folder, device = pathlib.Path(sys.argv[1]), torch.device("cuda", 0)
state = Checkpoints(folder, layer, torch.nn.Identity(), optimizer, device).load("last")
print(torch.cuda.device_count(), state.step, torch.rand(1, device="cuda").item())
"""


def test_a_checkpoint_of_the_last_gpu_is_resumed_where_there_is_one(tmp_path):
    """Only the random state of the own device is saved: another machine may have fewer."""
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    layer = torch.nn.Linear(2, 2).to(device)
    checkpoints = Checkpoints(
        tmp_path, layer, torch.nn.Identity(), torch.optim.AdamW(layer.parameters(), fused=True), device
    )
    torch.cuda.manual_seed_all(5)
    checkpoints.save("last", TrainingState(step=7))
    expected = torch.rand(1, device=device).item()
    checkpoints.load("last")
    assert torch.rand(1, device=device).item() == expected
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    command = [sys.executable, "-c", RESUME, str(tmp_path)]
    source = str(Path(orthoproxy.__file__).parents[1])
    environ = {**os.environ, "CUDA_VISIBLE_DEVICES": first, "PYTHONPATH": source}
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True)
    devices, step, drawn = done.stdout.split()
    assert (devices, step) == ("1", "7") and float(drawn) == expected


def test_a_run_on_the_cpu_does_not_initialize_cuda(tmp_path, recipe, photos):
    program = f"""
import orthoproxy, torch
config = orthoproxy.read_config({str(recipe)!r}, overrides={{
    "data.root": {str(photos)!r}, "training.device": "cpu", "training.precision": "auto"}})
orthoproxy.train(config, {str(tmp_path / "run")!r})
assert not torch.cuda.is_initialized()
"""
    environ = {**os.environ, "PYTHONPATH": str(Path(orthoproxy.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", program], env=environ, check=True)
