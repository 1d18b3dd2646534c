"""The formulas of the plan. Units are in the names.

retries     n GPUs of mean time M between failures of one fail n w / M times in a run of w seconds, on average
checkpoint  writing takes d, a restart R; the best interval is T = sqrt(2 d M / n) (Young, 1974; Daly, 2006, eq. 7), and
            a share d / T + (T / 2 + R) n / M of the time is lost
all-reduce  of b bytes in a ring of n: each sends 2 (n - 1) / n b (Patarasuk & Yuan, 2009)
speed-up    serial work s, other work p: (s + p) / (s + p / n), below (s + p) / s (Amdahl, 1967)
"""

from __future__ import annotations

import math


def images_to_make(wanted: int, accepted_share: float) -> int:
    """Images that must be made so that `wanted` are accepted."""
    return math.ceil(wanted / accepted_share)


def shards(images: int, shard_images: int) -> int:
    """Number of files of a pool."""
    return math.ceil(images / shard_images)


def pass_seconds(images: int, flop_per_image: float, flop_per_second: float, operations: float, launch_seconds: float) -> float:
    """Time of a pass of a network over a batch: of its arithmetic or of launching its operations, whichever is longer."""
    return max(images * flop_per_image / flop_per_second, operations * launch_seconds)


def rounds_seconds(units: int, workers: int, unit_seconds: float) -> float:
    """Time of `units` of equal, indivisible work on `workers`: the last round may leave workers idle."""
    return math.ceil(units / workers) * unit_seconds


def ring_bytes(size_bytes: float, workers: int) -> float:
    """Bytes that each of `workers` sends in an all-reduce of `size_bytes`."""
    return 2 * (workers - 1) / workers * size_bytes


def speed_up(serial_seconds: float, parallel_seconds: float, workers: float) -> float:
    """Speed-up by `workers`; math.inf gives the limit."""
    return (serial_seconds + parallel_seconds) / (serial_seconds + parallel_seconds / workers)


def expected_failures(wall_seconds: float, gpus: int, gpu_mtbf_seconds: float) -> float:
    """Expected number of failures of `gpus` in `wall_seconds`."""
    return wall_seconds * gpus / gpu_mtbf_seconds


def probability_of_failure(expected: float) -> float:
    """Probability of at least one failure, with independent failures (Poisson)."""
    return -math.expm1(-expected)


def best_interval_seconds(write_seconds: float, mtbf_seconds: float) -> float:
    """Best interval between checkpoints; `mtbf_seconds` is that of all GPUs that work together."""
    return math.sqrt(2 * write_seconds * mtbf_seconds)


def lost_share(write_seconds: float, interval_seconds: float, restart_seconds: float, mtbf_seconds: float) -> float:
    """Share of the time lost to writing checkpoints, repeating the work since the last one, and restarting."""
    return write_seconds / interval_seconds + (interval_seconds / 2 + restart_seconds) / mtbf_seconds


def retried_seconds(failures: float, shard_seconds: float, restart_seconds: float) -> float:
    """GPU seconds lost if a failure stops one GPU alone and costs half a shard and a restart."""
    return failures * (shard_seconds / 2 + restart_seconds)
