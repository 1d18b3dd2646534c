"""Recipes: how a plan treats its rows, and the real-only arms, each of which is a recipe.

    real                      rows as they are
    oversample                classes drawn evenly
    logit_adjustment          the log of the class prior added to the logits, times tau (Menon et al., 2021, eq. 10)
    augment                   images transformed
    augment+logit_adjustment  both
    augment+logit_adjustment_strong  both, with a second, larger tau
    mixup                     pairs of images and targets mixed (Zhang et al., 2018, eq. 1)
    cutmix                    augment, a box of one image pasted into another, targets mixed by area (Yun et al., 2019, eq. 1)
    cutmix+logit_adjustment   both
    class_balanced            augment; rows weigh one over the effective number of their class (Cui et al., 2019, section 4)
    ldam_drw                  augment; margins and a cosine last layer; `class_balanced` in the last steps (Cao et al., 2019)
    crt                       augment; in the last steps the last layer alone, anew, classes drawn evenly (Kang et al., 2020)
    smote                     augment; classes filled with points between their own rows (Chawla et al., 2002)
    self_distillation         the student of the best of these

To add one: its name and a sentence in config.REAL_ARMS, its recipe in `recipes`, its row in docs/evaluation.md.

Students. Soft labels are those of an image as it is, and the teacher passes on what it learned from augmented and mixed images.
So its student neither augments nor mixes any row (`Recipe.student`). Self-distillation gives a share of the student's draws to
train images that were augmented and mixed beforehand, as the teacher's recipe does it, with the teacher's soft labels of the
result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.config import SELF_DISTILLATION, Classifier

Mix = Literal["none", "mixup", "cutmix"]


@dataclass(frozen=True)
class DeferredRecipe:
    """How the last `share` of the steps treat their rows: `balanced` and `beta` as in Recipe.

    With `head_only` the network's body stands still, its last layer is drawn anew, and the learning rate starts again.
    """

    share: float
    balanced: bool = False
    beta: float | None = None
    head_only: bool = False


@dataclass(frozen=True)
class Recipe:
    """How a plan treats its rows; the default leaves them as they are."""

    balanced: bool = False  # classes are drawn evenly, and `beta` then changes nothing
    beta: float | None = None  # in [0, 1): rows weigh 1 / effective number of their class
    tau: float = 0.0
    transform: str = "none"
    mix: Mix = "none"
    mix_alpha: float = 0.0
    margin: float = 0.0  # of the class with the fewest rows, in units of a cosine where the last layer has one
    cosine: float | None = None
    neighbours: int = 0  # k of SMOTE; 0 makes no points
    distilled: float = 0.0  # in [0, 1): share of the draws for augmented train images with a teacher's soft labels
    deferred: DeferredRecipe | None = None

    def student(self) -> Recipe:
        """The recipe of a student of this one: rows as they are, at the prior that the teacher ended with, and nothing else.

        At another prior the teacher's soft labels would be those of another posterior.
        """
        end = self.deferred or self
        return Recipe(balanced=end.balanced or self.neighbours > 0, beta=end.beta, tau=self.tau, distilled=self.distilled)


def recipes(config: Classifier) -> Mapping[str, Recipe]:
    """The real-only arms that need no teacher, by name."""
    augment, beta = Recipe(transform=config.augment), config.class_balanced_beta
    cutmix = replace(augment, mix="cutmix", mix_alpha=config.cutmix_alpha)
    return {
        "real": Recipe(),
        "oversample": Recipe(balanced=True),
        "logit_adjustment": Recipe(tau=config.tau),
        "augment": augment,
        "augment+logit_adjustment": replace(augment, tau=config.tau),
        "augment+logit_adjustment_strong": replace(augment, tau=config.tau_strong),
        "mixup": Recipe(mix="mixup", mix_alpha=config.mixup_alpha),
        "cutmix": cutmix,
        "cutmix+logit_adjustment": replace(cutmix, tau=config.tau),
        "class_balanced": replace(augment, beta=beta),
        # Cao et al. (2019), algorithm 1: re-weighting waits until the features have been learned from rows as they are.
        "ldam_drw": replace(
            augment, margin=config.ldam_margin, cosine=config.cosine_scale, deferred=DeferredRecipe(config.drw_share, beta=beta)
        ),
        # Kang et al. (2020), section 4, classifier re-training: features from rows as they are, decisions from even classes.
        "crt": replace(augment, deferred=DeferredRecipe(config.crt_share, balanced=True, head_only=True)),
        "smote": replace(augment, neighbours=config.smote_neighbours),
    }


def recipe_of(config: Classifier, arm: str, teacher: str) -> Recipe:
    """The recipe of a real-only arm. `self_distillation` is the student of the arm `teacher`."""
    known = recipes(config)
    if arm == SELF_DISTILLATION:
        return replace(known[teacher].student(), distilled=config.distillation_share)
    return known[arm]
