"""Mixed pairs: what is pasted, how much of it, and who decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.classifier import mixing


def pairs(n: int = 400, h: int = 8, w: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of constant value i / n with target i, one-hot."""
    x = torch.arange(n, dtype=torch.float32)[:, None, None, None].expand(n, 2, h, w)
    return x, torch.eye(n)


@pytest.mark.parametrize(("h", "w"), [(8, 8), (4, 16)])
def test_cutmix_mixes_targets_by_exactly_the_area_that_is_pasted(h: int, w: int) -> None:
    x, t = pairs(h=h, w=w)
    mixed = mixing.cutmix(x, t, 1.0, np.random.default_rng(0))
    own = torch.arange(400, dtype=torch.float32)[:, None, None, None]
    kept, pasted = (mixed.images == own).float(), (mixed.images == 399 - own).float()
    assert torch.equal(kept + pasted, torch.ones_like(kept))
    share = pasted.mean((1, 2, 3))  # exact: the number of pixels is a power of two
    assert torch.equal(mixed.targets.diagonal(), 1 - share)
    assert torch.equal(mixed.targets.flip(1).diagonal(), share)
    assert torch.equal(mixed.targets.sum(1), torch.ones(400))


def test_cutmix_pastes_one_box_the_same_in_all_channels() -> None:
    x, t = pairs()
    mixed = mixing.cutmix(x, t, 1.0, np.random.default_rng(0))
    pasted = mixed.images != x
    assert torch.equal(pasted[:, 0], pasted[:, 1])
    for mask in pasted[:, 0]:
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        if len(rows):
            assert int(mask.sum()) == len(rows) * len(columns)
            assert len(rows) == rows[-1] - rows[0] + 1 and len(columns) == columns[-1] - columns[0] + 1
    where = pasted[:, 0].float().mean(0)
    assert float(where.min()) > 0.1  # every pixel may be pasted


def test_boxes_have_the_area_that_was_drawn_where_the_border_cuts_none() -> None:
    """Beta(alpha, alpha) of a large alpha is 1/2: sides of sqrt(1/2), 23 of 32 pixels, less what the border cuts."""
    x, t = pairs(2000, 32, 32)
    mixed = mixing.cutmix(x, t, 1e9, np.random.default_rng(0))
    share = mixed.targets.flip(1).diagonal()
    assert 22**2 / 32**2 <= float(share.max()) <= 23**2 / 32**2
    # A centre uniform on [0, 1] leaves of a side s, on average, s - s^2 / 4.
    s = np.sqrt(0.5)
    assert float(share.mean()) == pytest.approx((s - s * s / 4) ** 2, abs=0.01)


@pytest.mark.parametrize("name", list(mixing.MIXES))
def test_draws_are_the_generators_and_weights_stay_in_the_targets(name: str) -> None:
    x, t = pairs(40)
    heavy = t * torch.linspace(0.1, 2.0, 40)[:, None]
    a, b, other = (mixing.MIXES[name](x, heavy, 1.0, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets)
    assert not torch.equal(a.images, other.images)
    plain = mixing.MIXES[name](x, t, 1.0, np.random.default_rng(0)).targets
    torch.testing.assert_close(a.targets, plain * torch.linspace(0.1, 2.0, 40)[None, :])
