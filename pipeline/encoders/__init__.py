"""What makes features of images: the contract, our encoders, and the judges.

Exported is what an encoder of another package needs, and what asks for features.
"""

from typing import TYPE_CHECKING

from pipeline.lazy import exports

if TYPE_CHECKING:
    from pipeline.encoders.base import COMPUTED as COMPUTED
    from pipeline.encoders.base import LEVELS as LEVELS
    from pipeline.encoders.base import SYMMETRIC as SYMMETRIC
    from pipeline.encoders.base import Encoder as Encoder
    from pipeline.encoders.base import Fitted as Fitted
    from pipeline.encoders.base import Fixed as Fixed
    from pipeline.encoders.base import Normalisation as Normalisation
    from pipeline.encoders.base import Origin as Origin
    from pipeline.encoders.base import fixed as fixed
    from pipeline.encoders.heads import Head as Head
    from pipeline.encoders.heads import fit_evenly as fit_evenly
    from pipeline.encoders.judges import Assessment as Assessment
    from pipeline.encoders.judges import Judges as Judges
else:
    __getattr__ = exports(
        __name__,
        {
            "pipeline.encoders.base": (
                "COMPUTED", "LEVELS", "SYMMETRIC", "Encoder", "Fitted", "Fixed", "Normalisation", "Origin", "fixed",
            ),
            "pipeline.encoders.heads": ("Head", "fit_evenly"),
            "pipeline.encoders.judges": ("Assessment", "Judges"),
        },
    )  # fmt: skip
