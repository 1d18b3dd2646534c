"""Small settings under which families fit real digits in seconds; one that does so by its defaults needs none."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

from pipeline.core.images import to_float

SHAPE, CLASSES = (1, 8, 8), 3
SETTINGS = {
    "naive": {"kind": "gaussian", "components": 16, "shrinkage": 0.2, "bandwidth": 0.3},
    "vae": {
        "kind": "variational", "mode": "prior", "latent_dim": 8, "beta": 1.0, "decoder_noise": False, "bound_samples": 8,
        "width": 16, "patch": 1, "dropout": 0.0, "steps": 250, "batch_images": 64, "lr": 0.004, "ema": 0.98, "class_power": 0.5,
        "augment": 0.1, "block_images": 16, "precision": "fp32", "threads": 1,
    },
    "normalizing_flow": {
        "components": 64, "couplings": 4, "width": 32, "bins": 4, "dropout": 0.0, "weight_decay": 0.1, "shrinkage": 0.05,
        "noise": 0.3, "temperature": 1.0, "steps": 100, "batch_images": 64, "lr": 0.004, "ema": 0.95, "class_power": 0.5,
        "augment": 0.1, "block_images": 16, "precision": "fp32", "threads": 1,
    },
    "autoregressive": {
        "levels": 32, "patch": 2, "window": 2, "width": 32, "depth": 1, "local_depth": 1, "dropout": 0.1, "steps": 200,
        "batch_images": 64, "lr": 0.01, "weight_decay": 0.0, "ema": 0.98, "class_power": 0.5, "augment": 0.1,
        "temperature": 1.0, "block_images": 16, "precision": "fp32", "threads": 1,
    },
    "energy_based": {
        "width": 16, "depth": 1, "patch": 2, "noise": 0.3, "components": 32, "shrinkage": 0.2, "chains": 32, "chain_steps": 6,
        "step_size": 0.5, "restart": 0.05, "label_weight": 1.0, "energy_weight": 0.01, "sample_steps": 20, "steps": 150,
        "batch_images": 32, "lr": 0.003, "ema": 0.98, "class_power": 0.5, "augment": 0.1, "block_images": 16,
        "precision": "fp32", "threads": 1,
    },
    "gan": {
        "latent": 8, "width": 8, "depth": 1, "r1": 0.03, "collapse_share": 0.2, "steps": 200, "batch_images": 24, "lr": 0.002,
        "ema": 0.95, "class_power": 0.5, "augment": 0.05, "block_images": 16, "precision": "fp32", "threads": 1,
    },
    "stylegan2": {
        "latent": 8, "width": 8, "mapping_layers": 2, "style_mixing": 0.5, "r1": 0.03, "r1_every": 8, "ada_target": 0.6,
        "ada_images": 20000, "truncation": 1.0, "collapse_share": 0.2, "steps": 200, "batch_images": 24, "lr": 0.002,
        "ema": 0.95, "class_power": 0.5, "augment": 0.4, "block_images": 16, "precision": "fp32", "threads": 1,
    },
    "diffusion": {
        "prediction": "v", "schedule": "edm", "network": "unet", "width": 16, "depth": 1, "patch": 1, "dropout": 0.0,
        "steps": 200, "batch_images": 32, "lr": 0.004, "ema": 0.97, "class_power": 0.5, "label_dropout": 0.1, "augment": 0.1,
        "balance": 0.0, "guidance": "none", "guidance_scale": 1.0, "guidance_from": 0.0, "guidance_to": 1.0, "guide_steps": 5,
        "guide_width": 16, "solver": "multistep", "solver_steps": 8, "bound_steps": 12, "block_images": 16,
        "precision": "fp32", "threads": 1,
    },
    "flow_matching": {
        "path": "linear", "network": "unet", "width": 16, "depth": 1, "patch": 1, "dropout": 0.0, "steps": 200,
        "batch_images": 32, "lr": 0.004, "ema": 0.97, "class_power": 0.5, "label_dropout": 0.1, "augment": 0.1,
        "balance": 0.0, "guidance": "none", "guidance_scale": 1.0, "guidance_from": 0.0, "guidance_to": 1.0,
        "guide_steps": 5, "guide_width": 16, "solver_steps": 6, "likelihood_steps": 4, "likelihood_probes": 1,
        "block_images": 16, "precision": "fp32", "threads": 1,
    },
    "compose": {
        "backgrounds": [], "symmetries": "none", "margin": 0.03, "surroundings": 2, "context": True, "spread": 1.0,
        "harmony": 0.5, "block_images": 16,
    },
    "external": {},
}  # fmt: skip


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits(n_class=CLASSES)
    images = torch.from_numpy(data.images).div(16).mul(255).round().byte()[:, None]
    return to_float(images), torch.from_numpy(data.target).long()
