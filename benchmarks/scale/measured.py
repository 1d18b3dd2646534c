"""Figures measured in this repository: benchmarks/results/speed.csv and docs/bakeoff.csv."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError

SPEED, BAKEOFF = Path("benchmarks/results/speed.csv"), Path("docs/bakeoff.csv")
FAMILY = "flow_matching"
SOLVER = "ours, Heun 8"
MICRO = 1e-6


@dataclass(frozen=True)
class Network:
    """A network on images of one form."""

    parameters: float
    evaluation_flop: float  # per image
    evaluation_operations: float
    training_flop: float  # per image
    training_operations: float


@dataclass(frozen=True)
class Image:
    """Costs of an image of one form: processor seconds and bytes."""

    form: str
    shape: tuple[int, int, int]
    encode_seconds: float
    write_seconds: float  # of the whole shard, including encoding
    decode_seconds: float
    look_seconds: float  # of the gate, shard by shard, including decoding
    look_alone_seconds: float  # the same without the judges' networks
    rest_seconds: float  # of the gate, all rows together
    png_bytes: float
    shard_bytes: float
    kept_bytes: float
    row_bytes: float
    source_bytes: float
    unet: Network
    classifier: Network
    judge: Network

    @property
    def pixel_bytes(self) -> int:
        """Bytes of the decoded image."""
        channels, height, width = self.shape
        return channels * height * width


@dataclass(frozen=True)
class Costs:
    """Costs that do not depend on the form, and the speed of two cores on 28 x 28 images."""

    machine: str
    load: float  # processes that competed for its cores before the part `pool`
    threads: float
    training_flop_per_second: float
    sampling_flop_per_second: float
    evaluations: int  # of the U-Net, per image
    accepted_share: float
    duplicates_seconds: float  # per real row, in `prepare`
    dvc_file_seconds: float
    dvc_gigabyte_seconds: float
    hash_gigabyte_seconds: float
    checkpoint_gigabyte_seconds: float
    checkpoint_bytes_per_parameter: float
    scoring_seconds: float  # per arm and test row
    table_bytes: float  # per row of a pool under Great Expectations
    overhead_seconds: float


SHAPES = {"28 x 28": (1, 28, 28), "256 x 256": (3, 256, 256)}


class Figures:
    """The rows of speed.csv."""

    def __init__(self, file: Path = SPEED) -> None:
        self.file = file
        with open(file, encoding="utf-8", newline="") as stream:
            self.rows = {(row["part"], row["name"]): row for row in csv.DictReader(stream)}

    def __call__(self, part: str, name: str) -> float:
        """The value. Raises DataError if it was not measured."""
        return float(self._row(part, name)["value"])

    def machine(self, part: str, name: str) -> str:
        """The machine on which it was measured."""
        return str(self._row(part, name)["machine"])

    def _row(self, part: str, name: str) -> Mapping[str, str]:
        try:
            return self.rows[part, name]
        except KeyError:
            raise DataError(
                f"{self.file}: no row {part}, {name}", expected="what benchmarks.speed measures",
                remedy=f"run `python -m benchmarks.speed {part}`",
            ) from None  # fmt: skip


def accepted_share(file: Path = BAKEOFF) -> float:
    """The smallest share of FAMILY's images that the gate accepted, over the data sets of the bake-off."""
    with open(file, encoding="utf-8", newline="") as stream:
        shares = [float(row["accepted"]) for row in csv.DictReader(stream) if row["family"] == FAMILY and row["accepted"]]
    if not shares:
        raise DataError(f"{file}: no accepted share of {FAMILY}", remedy="run `make bakeoff`")
    return min(shares)


def image(figures: Figures, form: str) -> Image:
    """Costs of an image of `form`."""

    def seconds(name: str) -> float:
        return MICRO * figures("pool", f"{form}|{name}|processor time an image")

    def size(name: str) -> float:
        return figures("pool", f"{form}|{name}|size an image")

    def network(name: str) -> Network:
        def of(what: str) -> float:
            return figures("pool", f"{form}, {name}|{what}")

        return Network(
            of("network|parameters"), 1e6 * of("evaluation|work"), of("evaluation|operations"), 1e6 * of("training|work"),
            of("training|operations"),
        )  # fmt: skip

    return Image(
        form=form,
        shape=SHAPES[form],
        encode_seconds=seconds("encode PNG"),
        write_seconds=seconds("write shards"),
        decode_seconds=seconds("decode PNG"),
        look_seconds=seconds("look"),
        look_alone_seconds=seconds("look without networks"),
        rest_seconds=seconds("rest of the gate"),
        png_bytes=size("PNG"),
        shard_bytes=size("shard"),
        kept_bytes=size("kept by the gate"),
        row_bytes=size("row without image"),
        source_bytes=size("a source of a row"),
        unet=network("U-Net"),
        classifier=network("classifier"),
        judge=network("judge"),
    )


def costs(figures: Figures) -> Costs:
    """All other costs."""
    peak = 1e9 * figures("generator", "peak")
    table = {n: 1e6 * figures("scaling", f"validation|{n:,} rows|memory") for n in (100_000, 1_000_000)}
    return Costs(
        machine=figures.machine("generator", "peak"),
        load=figures("pool", "load_before"),
        threads=figures("generator", "threads"),
        training_flop_per_second=peak * figures("generator", "training|ours|share of peak"),
        sampling_flop_per_second=peak * figures("generator", f"sampling|{SOLVER}|share of peak"),
        evaluations=int(figures("generator", f"sampling|{SOLVER}|evaluations")),
        accepted_share=accepted_share(),
        duplicates_seconds=MICRO * figures("scaling", "duplicates|100,000 rows|time a row"),
        dvc_file_seconds=MICRO * figures("pool", "DVC|a file|processor time"),
        dvc_gigabyte_seconds=MICRO * figures("pool", "DVC|a gigabyte|processor time"),
        hash_gigabyte_seconds=MICRO * figures("pool", "stage's hash|a gigabyte|processor time"),
        checkpoint_gigabyte_seconds=MICRO * figures("pool", "checkpoint|a gigabyte|processor time"),
        checkpoint_bytes_per_parameter=figures("pool", "checkpoint|a parameter|size"),
        scoring_seconds=MICRO * figures("pool", "evaluate|an arm and test row|processor time"),
        table_bytes=(table[1_000_000] - table[100_000]) / 900_000,
        overhead_seconds=figures("overhead", "overhead_seconds"),
    )
