"""A training step of EfficientNet-Lite0 at 64 pixels, with our gradient of depthwise weights and with PyTorch's.

    python benchmarks/depthwise.py

Forward and backward pass of 128 images, float32, channels-last, random weights: nothing is read and no optimiser
steps. Most maps of this network have 4 x 4 or 2 x 2 places at 64 pixels, fewer than its kernels of 5 x 5, and there
oneDNN has no kernel of its own for the gradient of the weights. How much that costs depends on the processor.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import timm
import torch
from measure import arguments, paired_seconds, report, times_faster

from orthoproxy.models.depthwise import with_fast_depthwise

BATCH, SIDE = 128, 64


def step_of(*changes: Callable[[torch.nn.Module], None]) -> Callable[[], None]:
    network = timm.create_model("tf_efficientnet_lite0", num_classes=0).train().to(memory_format=torch.channels_last)
    for change in changes:
        change(network)
    x = torch.rand(BATCH, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
    return lambda: network(x).square().mean().backward()


def main() -> None:
    options = arguments(__doc__ or "", runs=9)
    rows = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        candidates = {"PyTorch's": step_of(), "ours": step_of(with_fast_depthwise)}
        seconds = paired_seconds(candidates, options.runs)
        rows += [
            {
                "gradient of depthwise weights": name,
                "threads": threads,
                "images/s": BATCH / statistics.median(values),
                "times as fast": times_faster(seconds, name, "PyTorch's"),
            }
            for name, values in seconds.items()
        ]
    report("depthwise", f"EfficientNet-Lite0 at {SIDE} pixels, forward and backward", list(rows[0]), rows)


if __name__ == "__main__":
    main()
