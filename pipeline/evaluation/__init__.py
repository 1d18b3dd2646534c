"""From trained runs and test rows to numbers, intervals and the verdict. Exported is what others may use."""

from typing import TYPE_CHECKING

from pipeline.lazy import exports

if TYPE_CHECKING:
    from pipeline.evaluation.intervals import Interval as Interval
    from pipeline.evaluation.intervals import Resamples as Resamples
    from pipeline.evaluation.intervals import interval as interval
    from pipeline.evaluation.intervals import resample as resample
    from pipeline.evaluation.results import ArmResult as ArmResult
    from pipeline.evaluation.results import Gain as Gain
    from pipeline.evaluation.results import GeneratorResult as GeneratorResult
    from pipeline.evaluation.results import Results as Results
    from pipeline.evaluation.score import evaluate as evaluate
else:
    __getattr__ = exports(
        __name__,
        {
            "pipeline.evaluation.intervals": ("Interval", "Resamples", "interval", "resample"),
            "pipeline.evaluation.results": ("ArmResult", "Gain", "GeneratorResult", "Results"),
            "pipeline.evaluation.score": ("evaluate",),
        },
    )
