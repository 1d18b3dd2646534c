"""What decides which synthetic images are accepted: expectations on the table, checks on pixels, and measures of a pool."""

from typing import TYPE_CHECKING

from pipeline.lazy import exports

if TYPE_CHECKING:
    from pipeline.validation.checks import CHECKS as CHECKS
    from pipeline.validation.checks import Band as Band
    from pipeline.validation.checks import Checks as Checks
    from pipeline.validation.checks import Measured as Measured
    from pipeline.validation.fidelity import METRICS as METRICS
    from pipeline.validation.fidelity import Estimate as Estimate
    from pipeline.validation.fidelity import measure as measure
    from pipeline.validation.gate import Outcome as Outcome
    from pipeline.validation.gate import check_pool as check_pool
else:
    __getattr__ = exports(
        __name__,
        {
            "pipeline.validation.checks": ("CHECKS", "Band", "Checks", "Measured"),
            "pipeline.validation.fidelity": ("METRICS", "Estimate", "measure"),
            "pipeline.validation.gate": ("Outcome", "check_pool"),
        },
    )  # fmt: skip
