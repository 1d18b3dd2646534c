"""Families of generators, a file each, and what they share.

Exported is what a family of another package needs: the contract, the base of its settings, its random numbers.
"""

from typing import TYPE_CHECKING

from pipeline.lazy import exports

if TYPE_CHECKING:
    from pipeline.config import Count as Count
    from pipeline.config import Section as Section
    from pipeline.config import Share as Share
    from pipeline.core.seeds import noise as noise
    from pipeline.core.seeds import rng as rng
    from pipeline.generators.shared.base import GenerativeModel as GenerativeModel
    from pipeline.generators.shared.base import HasEnergy as HasEnergy
    from pipeline.generators.shared.base import HasLogProb as HasLogProb
    from pipeline.generators.shared.base import Traits as Traits
    from pipeline.generators.shared.base import in_blocks as in_blocks
else:
    __getattr__ = exports(
        __name__,
        {
            "pipeline.config": ("Count", "Section", "Share"),
            "pipeline.core.seeds": ("noise", "rng"),
            "pipeline.generators.shared.base": ("GenerativeModel", "HasEnergy", "HasLogProb", "Traits", "in_blocks"),
        },
    )  # fmt: skip
