"""The report: one page that says what was found, and numbers as text. Exported is what others may use."""

from typing import TYPE_CHECKING

from pipeline.lazy import exports

if TYPE_CHECKING:
    from pipeline.report.numbers import Interval as Interval
    from pipeline.report.page import Sources as Sources
    from pipeline.report.page import render as render
else:
    __getattr__ = exports(
        __name__,
        {
            "pipeline.report.numbers": ("Interval",),
            "pipeline.report.page": ("Sources", "render"),
        },
    )
