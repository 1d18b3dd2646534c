"""What a piece of work cost: seconds and the peak memory of its process, with the machine, the date and the versions.

Costs are written beside results and never into them: equal work gives equal results, but different seconds.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core import work

if TYPE_CHECKING:
    import torch


@contextmanager
def noted(file: Path, *, images: int, resumed: bool) -> Iterator[None]:
    """Write seconds, images, peak memory in MB, machine, date and versions of the work within to `file`, once it has succeeded.

    `images` is the number of images that were learned from or made. `resumed` work began in an earlier process, whose seconds
    are not counted.
    """
    from pipeline.runtime.training import device

    began = time.perf_counter()
    yield
    where = device()
    cost = {
        "seconds": round(time.perf_counter() - began, 3),
        "images": images,
        "resumed": resumed,
        "peak_memory_mb": peak_memory(where) // 1_000_000,
        "machine": machine(where),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"python": platform.python_version(), "torch": metadata.version("torch")},
    }
    work.write_json(file, cost)


def read(fit: Path, sample: Path) -> dict[str, Any]:
    """What the stages `fit` and `sample` recorded; None for the seconds of resumed work, whose first part was not counted."""
    fitted, sampled = (json.loads(file.read_text(encoding="utf-8")) for file in (fit, sample))
    return {
        "fit_seconds": None if fitted["resumed"] else fitted["seconds"],
        "images_per_second": None if sampled["resumed"] else sampled["images"] / max(sampled["seconds"], 1e-9),
        "peak_memory_mb": max(fitted["peak_memory_mb"], sampled["peak_memory_mb"]),
        **{name: fitted[name] for name in ("machine", "date", "versions")},
    }


def peak_memory(where: torch.device) -> int:
    """Peak memory in bytes: of the accelerator if there is one, else of this process."""
    if where.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(where)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)  # the largest one, if several processes fitted
    return max(resource.getrusage(who).ru_maxrss for who in whose) * unit


def machine(where: torch.device) -> str:
    """The name of the accelerator, or of the processor with the number of cores that this process may use."""
    if where.type == "cuda":
        import torch

        return torch.cuda.get_device_name(where)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores"
