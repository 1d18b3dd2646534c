"""The plain recipe: diffusers' U-Net, schedulers and loop, a DataLoader over PIL images, all in fp32."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

WIDTHS = range(16, 257, 16)
LEARNING_RATE = 1e-3  # ten times that of diffusers' examples, whose runs are longer


class Images(Dataset[tuple[Tensor, int]]):
    """PIL images with their classes, through ToTensor and Normalize one by one."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        from torchvision.transforms import Compose, Normalize, ToTensor

        self.pictures = [Image.fromarray(image[0].numpy()) for image in images]
        self.labels = labels.tolist()
        self.transform = Compose([ToTensor(), Normalize([0.5], [0.5])])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(self.pictures[i]), self.labels[i]


def network(size: int, n_classes: int, width: int) -> Any:
    """UNet2DModel with two resolutions of `width` and twice it, attention at the lower one."""
    from diffusers import UNet2DModel

    build: Any = UNet2DModel
    return build(
        sample_size=size, in_channels=1, out_channels=1, block_out_channels=(width, 2 * width), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8, num_class_embeds=n_classes,
    )  # fmt: skip


def parameters(module: nn.Module) -> int:
    """Numbers that are learned."""
    return sum(p.numel() for p in module.parameters())


def as_large_as(size: int, n_classes: int, wanted: int) -> Any:
    """The network whose number of parameters is nearest to `wanted`."""
    return min((network(size, n_classes, w) for w in WIDTHS), key=lambda made: abs(parameters(made) - wanted))


@dataclass(frozen=True)
class Trained:
    """What a while of training took."""

    images: int
    seconds: float


def train(model: Any, images: Tensor, labels: Tensor, *, batch: int, seconds: float, class_power: float) -> Trained:
    """Train `model` by DDPM's loss for a while."""
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_cosine_schedule_with_warmup

    schedule: Any = DDPMScheduler(num_train_timesteps=1000)
    weights = torch.bincount(labels).double()[labels] ** -class_power
    chosen = WeightedRandomSampler(weights.tolist(), 1_000_000)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    rates: Any = None
    model.train()
    began, used, step = time.perf_counter(), 0, 0
    for x, y in DataLoader(Images(images, labels), batch_size=batch, sampler=chosen):
        noise, t = torch.randn_like(x), torch.randint(0, 1000, (len(x),))
        loss = nn.functional.mse_loss(model(schedule.add_noise(x, noise, t), t, class_labels=y).sample, noise)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        used, step, taken = used + len(x), step + 1, time.perf_counter() - began
        if rates is not None:
            rates.step()
        elif step == 5:  # as many steps as the time allows at the speed so far
            rates = get_cosine_schedule_with_warmup(optimiser, 10, max(20, int(seconds / taken * 5) - 5))
        if taken >= seconds:
            break
    return Trained(used, time.perf_counter() - began)


@torch.no_grad()
def sample(model: Any, labels: Tensor, steps: int, batch: int) -> Tensor:
    """Images float32 (n, 1, h, w) in [-1, 1] by DDIM."""
    from diffusers import DDIMScheduler

    model.eval()
    schedule: Any = DDIMScheduler(num_train_timesteps=1000)
    schedule.set_timesteps(steps)
    size, made = model.config.sample_size, []
    for y in torch.split(labels, batch):
        x = torch.randn(len(y), 1, size, size)
        for t in schedule.timesteps:
            x = schedule.step(model(x, t, class_labels=y).sample, t, x).prev_sample
        made.append(x)
    return torch.cat(made).clamp(-1.0, 1.0)
