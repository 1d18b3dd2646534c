"""Assumptions that were not measured here: a cluster of H100 GPUs, and the size of the task. Each figure names its source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

GPUS = (8, 64, 512)
DAY = 86_400
OURS = "assumption"


def assumed(value: float, what: str, unit: str, source: str) -> Any:
    """A field with its value, meaning, unit and source."""
    return field(default=value, metadata={"what": what, "unit": unit, "source": source})


@dataclass(frozen=True)
class Cluster:
    """Machines of eight GPUs."""

    peak_flop_per_second: float = assumed(
        989.4e12, "peak of a GPU, bf16, dense", "FLOP/s", "NVIDIA, data sheet of the H100 SXM"
    )
    share_of_peak: float = assumed(
        0.30, "share of it that networks reach", "", f"{OURS}; Llama 3 405B reached 0.38 to 0.43 (2024, table 4)"
    )
    launch_seconds: float = assumed(5e-6, "launching an operation", "s", OURS)
    gpus_per_machine: int = assumed(8, "GPUs per machine", "", "NVIDIA, DGX H100")
    cores_per_gpu: int = assumed(
        14, "cores per GPU, each as fast as one here", "", "NVIDIA, DGX H100: 112 for 8; speed: " + OURS
    )
    gpu_memory_bytes: float = assumed(80e9, "memory of a GPU", "bytes", "NVIDIA, data sheet of the H100 SXM")
    memory_bytes: float = assumed(2e12, "memory of a machine", "bytes", "NVIDIA, DGX H100")
    link_bytes_per_second: float = assumed(
        450e9, "GPU to GPU in a machine, each way", "bytes/s", "NVIDIA, NVLink 4: 900 GB/s both ways"
    )
    network_bytes_per_second: float = assumed(
        50e9, "GPU to GPU of another machine", "bytes/s", "NVIDIA, DGX H100: 400 Gb/s per GPU"
    )
    storage_bytes_per_second: float = assumed(5e9, "machine to object store", "bytes/s", OURS)
    puts_per_second: float = assumed(3500, "objects stored under a prefix", "1/s", "AWS, performance guidelines of S3")
    gpu_mtbf_seconds: float = assumed(
        54 * DAY * 16_384 / 419, "mean time between failures of a GPU and its share of everything else", "s",
        "Llama 3 (2024, section 3.3.4): 419 unexpected interruptions of 16,384 GPUs in 54 days",
    )  # fmt: skip
    restart_seconds: float = assumed(600, "restart after a failure", "s", OURS)

    @property
    def flop_per_second(self) -> float:
        """Speed of a GPU that runs a network."""
        return self.peak_flop_per_second * self.share_of_peak


@dataclass(frozen=True)
class Task:
    """The size of the task, apart from the form of the images."""

    wanted_images: int = assumed(1_000_000, "accepted images", "", "the task")
    classes: int = assumed(10, "classes", "", OURS)
    sources: int = assumed(100, "train images of a class, which each image names as its sources", "", OURS)
    test_rows: int = assumed(10_000, "real test images", "", OURS)
    arms: int = assumed(10, "arms, of five seeds each", "", "docs/speed.md, packing")
    seeds: int = assumed(5, "seeds", "", "params.yaml")
    classifier_steps: int = assumed(1000, "optimiser steps of a classifier", "", "benchmarks/gain.py")
    classifier_batch: int = assumed(64, "images per step", "", "benchmarks/gain.py")
    least_images_per_gpu: int = assumed(4, "images per GPU in a step of a fit, at least", "", OURS)


@dataclass(frozen=True)
class Fit:
    """How long a generator is trained."""

    steps: int
    batch_images: int
    source: str


FITS = {
    "28 x 28": Fit(2000, 128, "benchmarks/gain.py"),
    "256 x 256": Fit(100_000, 256, f"{OURS}; StyleGAN2-ADA saw 25 million images (Karras et al., 2020)"),
}


def table(*of: Any) -> Iterator[tuple[str, float, str, str]]:
    """(what, value, unit, source) of each field."""
    for one in of:
        for f in fields(one):
            yield f.metadata["what"], getattr(one, f.name), f.metadata["unit"], f.metadata["source"]
