"""Metrics: what decides whether synthetic images help. Exported is what a metric of another package needs."""

from typing import TYPE_CHECKING

from pipeline.lazy import exports

if TYPE_CHECKING:
    from pipeline.metrics.base import Metric as Metric
    from pipeline.metrics.base import repeated as repeated
    from pipeline.metrics.predictions import Predictions as Predictions
else:
    __getattr__ = exports(
        __name__,
        {
            "pipeline.metrics.base": ("Metric", "repeated"),
            "pipeline.metrics.predictions": ("Predictions",),
        },
    )
