"""Small settings under which every family fits real digits in seconds."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

from pipeline.images import to_float

SHAPE, CLASSES = (1, 8, 8), 3
SETTINGS = {
    "naive": {"kind": "gaussian", "components": 16, "shrinkage": 0.2, "bandwidth": 0.3},
    "flow_matching": {
        "network": "unet", "width": 16, "depth": 1, "patch": 1, "dropout": 0.0, "steps": 250, "batch_images": 64, "lr": 0.004,
        "ema": 0.98, "class_power": 0.5, "label_dropout": 0.1, "augment": 0.1, "guidance_scale": 1.0, "solver_steps": 6,
        "block_images": 16, "precision": "fp32", "threads": 1,
    },
    "external": {"path": "data/external"},
}  # fmt: skip


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits(n_class=CLASSES)
    images = torch.from_numpy(data.images).div(16).mul(255).round().byte()[:, None]
    return to_float(images), torch.from_numpy(data.target).long()
