"""Training jobs for tests of the loop."""

import copy

import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader

from orthoproxy.data import BatchSampler, TrainingImages, folder_table, training_transform
from orthoproxy.losses import Objective, ProxyAnchorLoss, SoftOrthogonality
from orthoproxy.training import FitOptions, fit, make_optimizer
from orthoproxy.training.checkpoint import Checkpoints, TrainingState


class Job:
    """Everything that `fit` takes; it is its own log."""

    def __init__(self, folder, fabric, encoder, objective, rates, dataset, sampler):
        self.fabric = fabric
        self.encoder = copy.deepcopy(encoder).to(fabric.device)
        self.average = None
        self.objective = objective.to(fabric.device)
        self.optimizer = make_optimizer(self.encoder, self.objective, *rates, 1e-4)
        self.sampler = sampler
        self.loader = DataLoader(dataset, batch_sampler=sampler, generator=torch.Generator())
        self.checkpoints = Checkpoints(folder, self.encoder, self.objective, self.optimizer, fabric.device)
        self.options = FitOptions(epochs=1)
        self.records = []

    def validate(self):
        return None

    def log(self, record):
        self.records.append(record)

    def fit(self, state=None, **options):
        self.options = FitOptions(**{"epochs": 1, **options})
        return fit(self, state or TrainingState(), self)

    def parameters(self):
        parts = (self.encoder, self.objective)
        return {name: p.detach().clone() for part in parts for name, p in part.named_parameters()}


def make_job(folder, encoder, images, batch_size=4, precision="32-true", device="cpu"):
    torch.manual_seed(0)
    table = folder_table(images)
    labels = table["label"].astype("category").cat.codes.astype(int).tolist()
    fabric = Fabric(accelerator=device, devices=1, precision=precision)
    objective = Objective(ProxyAnchorLoss(3, 8), 3, SoftOrthogonality(), weight=0.1)
    dataset = TrainingImages(table["path"].tolist(), labels, training_transform(32))
    return Job(folder, fabric, encoder, objective, (1e-3, 1e-3, 1e-2), dataset, BatchSampler(labels, batch_size))
