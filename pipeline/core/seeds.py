"""Random numbers without global state.

Every stream has a name: derive(seed, "batch", step) is the BLAKE2b hash of the seed and the names. So a stream never depends
on how many numbers another stream drew, on the order of work or on the number of workers. A synthetic image is a function of
the weights, its label and its own seed (Karras et al., EDM2, 2024: one generator per image).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def derive(seed: int, *names: str | int) -> int:
    """The seed in [0, 2^63) of the stream called `names` under `seed`."""
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def rng(seed: int, *names: str | int) -> torch.Generator:
    """A CPU torch.Generator at the start of the stream called `names`."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *names))


def numpy_rng(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator at the start of the stream called `names`."""
    return np.random.default_rng(derive(seed, *names))


@contextmanager
def torch_stream(seed: int, *names: str | int) -> Iterator[None]:
    """Within, torch's global stream (initial weights, dropout) is the one called `names`; afterwards it is restored."""
    import torch

    # torch.manual_seed would queue a call, with its stack, for an accelerator that may never be used: a millisecond and a leak.
    cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if cuda else ()):
        torch.default_generator.manual_seed(derive(seed, *names))
        if cuda:
            torch.cuda.manual_seed_all(derive(seed, *names))
        yield


def noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal noise (n, *shape). Row i is a function of seeds[i] alone."""
    import torch

    out = torch.empty(len(seeds), *shape)
    one = torch.Generator()
    for row, seed in zip(out, seeds, strict=True):
        row.normal_(generator=one.manual_seed(int(seed)))
    return out
