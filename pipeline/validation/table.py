"""Great Expectations on the rows of a pool: everything about a manifest that needs no pixel.

Two tables are handed over, never an image byte:

    pool       sample_id label split origin generator seed pixel_hash | new_id sources_in_train
    classes    label train synthetic needed share

sources_in_train is null where sources are unknown; share = synthetic / (synthetic + train). A critical failure means that the
pool cannot be used (a row that is not synthetic, a label nobody knows, a source outside train); a warning goes to the report.

Great Expectations is imported here alone: it takes seconds. Its pages are built without a network but load style sheets
and scripts from one when they are opened. They do not escape what they show, so names are escaped before they are handed
over. Times and random names are taken out of them: equal pools give equal bytes.
"""

from __future__ import annotations

import datetime
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipeline.core.manifest import SCHEMA, Manifest

PLAIN = [name for name in SCHEMA.names if name not in ("image", "sources", "group")]
DERIVED = ["new_id", "sources_in_train"]
EXAMPLES = 5
WHEN = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)  # the time that the pages show


@dataclass(frozen=True)
class Result:
    """What became of one expectation. `examples` are sample_ids, or labels for the table `classes`."""

    expectation: str
    column: str | None
    success: bool
    severity: str
    unexpected_count: int
    examples: list[str]
    observed: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def line(self) -> str:
        """One line for a user."""
        what = f" in {self.unexpected_count} row(s), e.g. {', '.join(self.examples)}" if self.unexpected_count else ""
        seen = f", found {self.observed}" if self.observed else ""
        return f"{self.severity}: {self.expectation}{f' of {self.column}' if self.column else ''} fails{what}{seen}"


def validate(
    pool: Manifest,
    train: Manifest,
    classes: Sequence[str],
    *,
    family: str,
    needed: Mapping[str, int],
    largest_share: float,
    docs: Path,
) -> list[Result]:
    """Validate `pool` (columns of SCHEMA; `image` is not looked at) and write Data Docs to `docs`.

    `needed` is the number of synthetic images that each class was to receive at least.
    """
    gx: Any = import_module("great_expectations")
    gxe: Any = import_module("great_expectations.expectations")
    from great_expectations.core import RunIdentifier

    rows, per_class = _pool_frame(pool, train), _class_frame(pool, train, classes, needed)
    stop, note = {"severity": "critical"}, {"severity": "warning"}
    suites = {
        "pool": [
            gxe.ExpectTableColumnsToMatchSet(column_set=[*PLAIN, *DERIVED], **stop),
            gxe.ExpectTableRowCountToBeBetween(min_value=1, **note),
            *(gxe.ExpectColumnValuesToNotBeNull(column=c, **stop) for c in ("sample_id", "label", "pixel_hash")),
            gxe.ExpectColumnValuesToBeUnique(column="sample_id", **stop),
            gxe.ExpectColumnValuesToBeUnique(column="pixel_hash", **note),
            gxe.ExpectColumnValuesToBeInSet(column="label", value_set=[html.escape(c) for c in classes], **stop),
            gxe.ExpectColumnValuesToBeInSet(column="split", value_set=["train"], **stop),
            gxe.ExpectColumnValuesToBeInSet(column="origin", value_set=["synthetic"], **stop),
            gxe.ExpectColumnValuesToBeInSet(column="generator", value_set=[html.escape(family)], **stop),
            *(gxe.ExpectColumnValuesToBeInSet(column=c, value_set=[True], **stop) for c in ("new_id", "sources_in_train")),
        ],
        "classes": [
            gxe.ExpectColumnPairValuesAToBeGreaterThanB(column_A="synthetic", column_B="needed", or_equal=True, **note),
            gxe.ExpectColumnValuesToBeBetween(column="share", max_value=largest_share, **note),
        ],
    }
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.absolute())}
    site = {
        "class_name": "SiteBuilder",
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        "store_backend": store,
    }
    context.add_data_docs_site("report", site)
    source = context.data_sources.add_pandas("manifest")
    when = RunIdentifier(run_name=family, run_time=WHEN)
    found: list[Result] = []
    for name, frame, key in (("pool", rows, "sample_id"), ("classes", per_class, "label")):
        suite = gx.ExpectationSuite(name=name)
        for expectation in suites[name]:
            suite.add_expectation(expectation)
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
        definition = context.validation_definitions.add(
            gx.ValidationDefinition(name=name, data=batch, suite=context.suites.add(suite))
        )
        form = {"result_format": "SUMMARY", "unexpected_index_column_names": [key], "partial_unexpected_count": EXAMPLES}
        checkpoint = context.checkpoints.add(gx.Checkpoint(name=name, validation_definitions=[definition], result_format=form))
        run = checkpoint.run(batch_parameters={"dataframe": frame}, run_id=when)
        found += [_result(each, key) for outcome in run.run_results.values() for each in outcome.results]
    context.build_data_docs(site_names=["report"])
    _still(docs)
    return sorted(found, key=lambda r: (r.severity, r.expectation, r.column or ""))


def _pool_frame(pool: Manifest, train: Manifest) -> Any:
    known = pc.is_in(pool.table["sample_id"], value_set=train.table["sample_id"].combine_chunks())
    frame = pool.table.select(PLAIN).to_pandas()
    frame["new_id"] = ~known.to_numpy(zero_copy_only=False)
    frame["sources_in_train"] = sources_in_train(pool, train)
    for column in ("sample_id", "label", "split", "origin", "generator", "pixel_hash"):
        frame[column] = frame[column].map(html.escape, na_action="ignore")
    return frame


def sources_in_train(pool: Manifest, train: Manifest) -> np.ndarray:
    """For each row True if all its sources are ids of `train`, False if not, None if they are unknown: object (n,)."""
    lists = pool.table["sources"].combine_chunks()
    parents = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    inside = pc.is_in(pc.list_flatten(lists), value_set=train.table["sample_id"].combine_chunks()).to_numpy(
        zero_copy_only=False
    )
    out = np.full(len(pool), None, dtype=object)
    out[lists.is_valid().to_numpy(zero_copy_only=False)] = True
    out[parents[~inside]] = False
    return out


def _class_frame(pool: Manifest, train: Manifest, classes: Sequence[str], needed: Mapping[str, int]) -> Any:
    import pandas as pd

    synthetic, real = pool.counts(classes), train.counts(classes)
    return pd.DataFrame(
        {
            "label": [html.escape(c) for c in classes],
            "train": real,
            "synthetic": synthetic,
            "needed": [needed.get(c, 0) for c in classes],
            "share": synthetic / np.maximum(synthetic + real, 1),
        }
    )


def _result(outcome: Any, key: str) -> Result:
    config, seen = outcome.expectation_config, outcome.result
    column = config.kwargs.get("column") or "/".join(config.kwargs[c] for c in ("column_A", "column_B") if c in config.kwargs)
    examples = [html.unescape(str(row[key])) for row in seen.get("partial_unexpected_index_list") or []][:EXAMPLES]
    observed = None if outcome.success else seen.get("observed_value")
    return Result(
        expectation=config.type.removeprefix("expect_"),
        column=column or None,
        success=bool(outcome.success),
        severity=str(config.severity.value),
        unexpected_count=int(seen.get("unexpected_count") or 0),
        examples=examples,
        observed=None if observed is None else str(observed),
    )


def _still(docs: Path) -> None:
    """Take times of writing and random names out of the pages."""
    for page in sorted(docs.rglob("*.html")):
        text = re.sub(r"\?d=\d{8}T[\d.]+Z", "", page.read_text(encoding="utf-8"))
        text = re.sub(r"\d{8}T\d{6}\.\d{6}Z", f"{WHEN:%Y%m%dT%H%M%S.%fZ}", text)
        for i, name in enumerate(dict.fromkeys(re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", text))):
            text = text.replace(name, f"id-{i}")
        page.write_text(text, encoding="utf-8")
