"""`python -m benchmarks.networks`: our U-Net beside diffusers' at the same widths, in one run, as ratios.

Training is one step (forward, backward) of a batch of 128, sampling one evaluation; the median of 7 after 2 for warming up,
the two networks in turn, so that a machine whose speed drifts is fair to both.
"""

from __future__ import annotations

import statistics
import time

import torch

from pipeline.generators.shared.augmentation import CONDITIONS
from pipeline.generators.shared.networks.diffusers_unet import DiffusersUNet
from pipeline.generators.shared.networks.unet import UNet
from pipeline.runtime.training import autocast, device

CASES = [((1, 8, 8), 48, 1, 1), ((1, 28, 28), 64, 1, 2), ((3, 32, 32), 64, 2, 2)]


def seconds(networks: list[torch.nn.Module], shape: tuple[int, int, int], precisions: list[str], train: bool) -> list[float]:
    """Median seconds of a batch of 128 for each network, taken in turn."""
    where = device()
    x, t, y = torch.randn(128, *shape, device=where), torch.rand(128, device=where), torch.zeros(128, device=where).long()
    a, taken = torch.zeros(128, CONDITIONS, device=where), [[] for _ in networks]
    for _ in range(9):
        for network, precision, own in zip(networks, precisions, taken, strict=True):
            start = time.perf_counter()
            with torch.set_grad_enabled(train), autocast(precision, where):
                out = network.to(where)(x, t, y, a)
            if train:
                out.square().mean().backward()
            if where.type == "cuda":
                torch.cuda.synchronize()
            own.append(time.perf_counter() - start)
    return [statistics.median(own[2:]) for own in taken]


def main() -> None:
    """Print images per second and the ratio ours : diffusers' (fp32, no space-to-depth, as a user would write it)."""
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {device()}")
    print("| images | width, depth, patch | what | ours, auto | diffusers, fp32 | ratio |\n|---|---|---|---|---|---|")
    for shape, width, depth, patch in CASES:
        same = {"width": width, "depth": depth, "dropout": 0.0, "conditions": CONDITIONS}
        ours, theirs = UNet(shape, 10, patch=patch, **same), DiffusersUNet(shape, 10, patch=1, **same)
        for train in (True, False):
            a, b = seconds([ours, theirs], shape, ["auto", "fp32"], train)
            what = "training" if train else "sampling"
            print(f"| {shape} | {width}, {depth}, {patch} | {what} | {128 / a:.0f}/s | {128 / b:.0f}/s | {b / a:.1f} |")


if __name__ == "__main__":
    main()
