"""prepare: images as they come -> data/prepared, real rows on three sides and in reserve, synthetic rows made elsewhere."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import Params
from pipeline.core import work
from pipeline.datasets import assemble, external, intake, lists, masks, past
from pipeline.datasets.decide import decide
from pipeline.datasets.rows import rows
from pipeline.datasets.split import FILES, SIDES
from pipeline.encoders.thumbnails import Thumbnails


def run(params: Params, out: Path) -> None:
    """Write train, val, test, reserve and external.parquet, dataset.json and inputs.json into `out`. Raises DataError.

    sides.parquet, which an earlier version left in `out`, keeps its rows on their sides, and is replaced.
    """
    data = params.data
    elsewhere = Path(data.external) if "external" in params.generators else None
    settings = [section.model_dump() for section in (data, params.split, params.scarcity)]
    found = intake.state(Path(data.path), *lists.files(params).values(), *([elsewhere] if elsewhere else []))
    with work.resumable(out, params.seed, settings, str(elsewhere), found) as folder:
        encoder = Thumbnails((data.channels, data.image_size, data.image_size))
        shards = intake.take_in(masks.attach(rows(data), data), data, encoder, folder / ".real", "prepare: real images")
        table = intake.columns(shards)
        noted = past.settings(params), past.identity(table, list(lists.files(params).values()))
        before = past.read(out / past.FILE, *noted)
        decision = decide(table, intake.thumbnails(shards, folder), params, before)
        now = past.rows(decision.paths, decision.sample_ids, table["pixel_hash"], decision.side)
        past.write(folder / past.FILE, now, before, *noted)
        hashes = [
            assemble.write_manifest(folder / f"{name}.parquet", assemble.real_rows(shards, decision, side))
            for side, name in enumerate(FILES)
        ]
        odd, inputs = intake.set_aside(table), dict[str, str | None].fromkeys(params.generators)
        others = []
        if elsewhere:
            made = external.rows(elsewhere, decision.classes)
            others = intake.take_in(made, data, encoder, folder / ".external", "prepare: external images")
            odd += intake.set_aside(intake.columns(others))
        hash_of_others = assemble.write_manifest(folder / "external.parquet", assemble.external_rows(others))
        if elsewhere:
            inputs["external"] = hash_of_others
        # Every stage reads dataset.json, and none but train_real may notice the reserve: it is no part of the fingerprint.
        fingerprint = work.key(*hashes[: len(SIDES)])
        work.write_json(folder / "dataset.json", assemble.describe(decision, data, odd, fingerprint))
        work.write_json(folder / "inputs.json", inputs)
