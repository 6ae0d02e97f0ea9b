"""Train DeiT-Ti with another library, as its documentation shows; save the model at each mark of CPU time.

Started by race.py; open-metric-learning needs an environment of its own, so nothing of orthoproxy is imported.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.layers import set_fused_attn
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

FEATURES, DIM = 192, 128
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FinishedError(Exception):
    """All models are saved."""


class Marks:
    """Save the model at given minutes of CPU time; to be called after each training step."""

    def __init__(self, model: nn.Module, minutes: Sequence[float], out: Path) -> None:
        self.model, self.left, self.out = model, sorted(minutes), out
        self.start = time.process_time()

    def __call__(self, *_: object) -> None:
        used = (time.process_time() - self.start) / 60
        while self.left and used >= self.left[0]:
            name = f"{self.left.pop(0):g}"
            torch.save(self.model.state_dict(), self.out / f"{name}.pt")
            (self.out / f"{name}.json").write_text(json.dumps({"minutes": round(used, 3)}))
        if not self.left:
            raise FinishedError


class Images(Dataset):
    """Images and class numbers."""

    def __init__(self, paths: Sequence[str], labels: Sequence[int], transform: transforms.Compose) -> None:
        self.paths, self.targets, self.transform = paths, labels, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.open(self.paths[row]).convert("RGB")), self.targets[row]


def deit(weights: str, size: int) -> nn.Module:
    """DeiT-Ti with ImageNet weights, its position embeddings resampled to the image size, computing in bfloat16."""
    set_fused_attn(False)  # the backward pass of PyTorch's fused kernel is slow in bfloat16 on CPUs
    model = timm.create_model("deit_tiny_patch16_224", num_classes=0, img_size=size)
    tensors = {name: x for name, x in load_file(weights).items() if not name.startswith("head.")}
    model.load_state_dict(checkpoint_filter_fn(tensors, model))
    in_bfloat16 = torch.autocast("cpu", torch.bfloat16)(model.forward)
    model.forward = lambda images: in_bfloat16(images).float()
    return model


class Network(nn.Module):
    """DeiT-Ti and a linear layer, with the names of orthoproxy's encoder."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self.backbone = deit(options.weights, options.size)
        self.projection = nn.Linear(FEATURES, DIM)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.projection(self.backbone(images))


def random_crops(size: int, smallest: float) -> transforms.Compose:
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(smallest, 1)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


def pytorch_metric_learning(options: argparse.Namespace, paths: list[str], labels: list[int], proxies: bool) -> None:
    """The trainer of its example MetricLossOnly: batches of 32, four images a class, the head at ten times the rate."""
    from pytorch_metric_learning import losses, miners, samplers, trainers

    network = Network(options)
    models = {"trunk": network.backbone, "embedder": network.projection}
    optimizers = {
        "trunk_optimizer": torch.optim.Adam(network.backbone.parameters(), lr=options.lr, weight_decay=1e-4),
        "embedder_optimizer": torch.optim.Adam(network.projection.parameters(), lr=10 * options.lr, weight_decay=1e-4),
    }
    if proxies:
        loss, mining = losses.ProxyAnchorLoss(max(labels) + 1, DIM), {}
        optimizers["metric_loss_optimizer"] = torch.optim.SGD(loss.parameters(), lr=0.01)
    else:
        loss, mining = losses.MultiSimilarityLoss(), {"tuple_miner": miners.MultiSimilarityMiner()}
    trainers.MetricLossOnly(
        models,
        optimizers,
        32,
        {"metric_loss": loss},
        Images(paths, labels, random_crops(options.size, 0.16)),
        mining_funcs=mining,
        sampler=samplers.MPerClassSampler(labels, m=4, length_before_new_iter=len(labels)),
        dataloader_num_workers=0,
        data_device=torch.device("cpu"),
        end_of_iteration_hook=Marks(network, options.minutes, options.out),
    ).train(num_epochs=1000)


def open_metric_learning(options: argparse.Namespace, paths: list[str], labels: list[int]) -> None:
    """The loop of its documentation, sampler and loss of its recipe for CUB, and its miner of hard triplets."""
    import pandas as pd
    from oml.datasets import ImageLabeledDataset
    from oml.interfaces.models import IExtractor
    from oml.losses.triplet import TripletLossWithMiner
    from oml.miners.inbatch_hard_tri import HardTripletsMiner
    from oml.samplers.balance import BalanceSampler
    from oml.transforms.images.torchvision import get_augs_hypvit

    class Extractor(IExtractor):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = deit(options.weights, options.size)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.backbone(x)

        @property
        def feat_dim(self) -> int:
            return FEATURES

    extractor = Extractor().train()
    optimizer = torch.optim.Adam(extractor.parameters(), lr=options.lr)
    table = pd.DataFrame({"path": paths, "label": labels, "split": "train"})
    train = ImageLabeledDataset(table, transform=get_augs_hypvit(options.size))
    criterion = TripletLossWithMiner(margin=None, miner=HardTripletsMiner())
    sampler = BalanceSampler(train.get_labels(), n_labels=8, n_instances=4)
    loader = DataLoader(train, batch_sampler=sampler)
    marks = Marks(extractor, options.minutes, options.out)
    while True:
        for batch in loader:
            loss = criterion(extractor(batch["input_tensors"]), batch["labels"])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            marks()


def proxy_anchor(options: argparse.Namespace, paths: list[str], labels: list[int]) -> None:
    """The settings of the authors' code: batches of 120, random proxies at 100 times the rate, head only in epoch 1."""
    from pytorch_metric_learning.losses import ProxyAnchorLoss

    network = Network(options)
    nn.init.kaiming_normal_(network.projection.weight, mode="fan_out")
    nn.init.zeros_(network.projection.bias)
    loss = ProxyAnchorLoss(max(labels) + 1, DIM, margin=0.1, alpha=32)
    groups = [
        {"params": network.parameters(), "lr": options.lr},
        {"params": loss.parameters(), "lr": 100 * options.lr},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.5)
    dataset = Images(paths, labels, random_crops(options.size, 0.08))
    loader = DataLoader(dataset, batch_size=120, shuffle=True, drop_last=True)
    marks, epoch = Marks(network, options.minutes, options.out), 0
    while True:
        network.backbone.requires_grad_(epoch > 0)
        for images, targets in loader:
            optimizer.zero_grad()
            loss(network(images), targets).backward()
            torch.nn.utils.clip_grad_value_([p for p in network.parameters() if p.grad is not None], 10)
            torch.nn.utils.clip_grad_value_(loss.parameters(), 10)
            optimizer.step()
            marks()
        scheduler.step()
        epoch += 1


PEERS = {
    "pml-multi-similarity": lambda *inputs: pytorch_metric_learning(*inputs, proxies=False),
    "pml-proxy-anchor": lambda *inputs: pytorch_metric_learning(*inputs, proxies=True),
    "oml-triplet": open_metric_learning,
    "proxy-anchor-authors": proxy_anchor,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--train", type=Path, help="CSV file with the columns path and label")
    parser.add_argument("--weights")
    parser.add_argument("--size", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--minutes", type=float, nargs="+")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(2)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(options.seed)
    with options.train.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = sorted({row["label"] for row in rows})
    options.out.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FinishedError):
        PEERS[options.peer](options, [row["path"] for row in rows], [names.index(row["label"]) for row in rows])


if __name__ == "__main__":
    main()
