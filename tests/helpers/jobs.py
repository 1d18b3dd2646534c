"""Jobs for workers. Each worker imports the module of its job, and a test's own module takes seconds."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import Diverged

Count = Callable[[int], None]


def who(piece: Path, count: Count) -> None:
    """Say which process this is, and on what it computes."""
    import torch

    piece.write_text(f"{os.getpid()} {torch.get_num_threads()} {os.environ.get('CUDA_VISIBLE_DEVICES')}")
    count(1)


def diverge(piece: Path, count: Count) -> None:
    raise Diverged(f"{piece.name} diverged", remedy="lower lr")


def linger(piece: Path, count: Count) -> None:
    """Say which process this is, and wait."""
    piece.write_text(str(os.getpid()))
    signal.pause()
