"""diffusers' UNet2DModel behind the signature of pipeline.generators.shared.networks.unet.UNet.

The class and the augmentation enter through its class embedding of kind `identity`, which is added to the embedding of t.
A reference to compare with: slower at this size than the U-Net beside it (docs/decisions/0003).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pipeline.runtime.parallel import Dropout


class DiffusersUNet(nn.Module):
    """v(x, t, y, a) as UNet's: two resolutions of `width` and 2 `width`, attention at the lower one."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        n_classes: int,
        *,
        width: int,
        depth: int,
        patch: int,
        dropout: float,
        conditions: int,
    ) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        channels, size, _ = shape
        self.patch = patch
        build: Any = UNet2DModel  # diffusers has no types
        self.unet: Any = build(
            sample_size=size // patch,
            in_channels=channels * patch**2,
            out_channels=channels * patch**2,
            block_out_channels=(width, 2 * width),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=depth,
            norm_num_groups=8,
            dropout=dropout,
            attention_head_dim=32,
            class_embed_type="identity",
        )
        for module in list(self.unet.modules()):
            for name, child in module.named_children():
                if type(child) is nn.Dropout:
                    setattr(module, name, Dropout(child.p))
        self.label = nn.Embedding(n_classes + 1, 4 * width)
        self.condition = nn.Linear(conditions, 4 * width, bias=False)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor, conditions: Tensor) -> Tensor:
        """(n, c, h, w), (n,) in [0, 1], (n,), (n, a) -> (n, c, h, w) in float32; t is scaled to diffusers' 0 … 1000."""
        embedding = self.label(labels) + self.condition(conditions)
        x = nn.functional.pixel_unshuffle(x, self.patch)
        out: Tensor = self.unet(x, t * 1000.0, class_labels=embedding).sample
        return nn.functional.pixel_shuffle(out, self.patch).float()
