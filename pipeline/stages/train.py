"""train: one classifier per arm and seed, and the choices on validation rows. With `family`, the arms of its pool."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.arms import accepted_rows
from pipeline.classifier import curve, headroom, selection
from pipeline.classifier.choice import RealChoice
from pipeline.classifier.inputs import Inputs
from pipeline.classifier.packed import Campaign
from pipeline.config import ENSEMBLE, Params
from pipeline.core import work
from pipeline.core.manifest import Manifest
from pipeline.core.prepared import Prepared
from pipeline.errors import InputError


def run(
    params: Params,
    prepared: Path,
    out: Path,
    family: str | None = None,
    pool: Path | None = None,
    checked: Path | None = None,
    real: Path | None = None,
) -> None:
    """Write <arm>/<seed>.safetensors and choice.json into `out`; without a family also curve/<m>/<seed>.safetensors.

    For the family `ensemble`, `pool` and `checked` are the folders of all families; nothing is written where it is not wanted.
    """
    data = Prepared(prepared)
    sections = (params.encoder, params.classifier, params.frozen, params.finetune, params.arms)
    settings = (params.seed, params.data.flips, [section.model_dump() for section in sections], params.evaluate.metric)
    rows = [prepared / name for name in ("train.parquet", "val.parquet", "dataset.json")]
    if family is None:
        reserve = [prepared / "reserve.parquet"] if params.arms.curve else []
        with work.resumable(out, settings, *rows, *reserve) as folder:
            modes = [Campaign.of(params, data, mode) for mode in params.modes]
            if params.arms.curve:
                looks = [Inputs.of(params, data.shape, shared.mode).to_learn for shared in modes]
                most = max(params.arms.curve)
                modes = [curve.with_reserve(shared, data, most, look) for shared, look in zip(modes, looks, strict=True)]
            selection.real_only(modes, params.arms, folder)
            choice, metric = RealChoice.read(folder), modes[0].metric
            print(f"headroom: {headroom.said(choice, metric, data.classes)}", file=sys.stderr)
        return
    if pool is None or checked is None or real is None:
        raise InputError(f"train --family {family}", expected="--pool, --checked and --real as well")
    members = params.generators if family == ENSEMBLE else [""]
    pools, verified = [pool / name for name in members], [checked / name / "images.parquet" for name in members]
    with work.resumable(out, settings, params.sample.fill_to, params.pools, *rows, *pools, *verified, real) as folder:
        if family == ENSEMBLE and family not in params.pools:
            return
        images = Manifest.read(*pools)
        shared = Campaign.of(params, data, RealChoice.read(real).mode, images, accepted_rows(images, verified))
        selection.with_pool(shared, params.arms, real, folder, fill_to=params.sample.fill_to)
