"""Arms: what a classifier is trained on, and nothing else.

An arm turns train rows, and perhaps a pool of synthetic rows, into a TrainingPlan. Arms differ in the plan alone: the network's
body, the optimiser, the number of steps and the seeds of each step's draws are the same for all, and a plan has no field for
them.

    data.py        the rows that plans may be made of, and the guards against leaks
    recipes.py     how rows are treated; the real-only arms
    plan.py        the plan, and how an arm builds it
    weighting.py   draws, weights, offsets and margins
    smote.py       points between rows
"""

from pipeline.arms.data import TrainingData as TrainingData
from pipeline.arms.data import accepted_rows as accepted_rows
from pipeline.arms.plan import Arm as Arm
from pipeline.arms.plan import DeferredSchedule as DeferredSchedule
from pipeline.arms.plan import Labels as Labels
from pipeline.arms.plan import TrainingPlan as TrainingPlan
from pipeline.arms.plan import null_arms as null_arms
from pipeline.arms.plan import synthetic_arms as synthetic_arms
from pipeline.arms.recipes import DeferredRecipe as DeferredRecipe
from pipeline.arms.recipes import Recipe as Recipe
from pipeline.arms.recipes import recipe_of as recipe_of
from pipeline.arms.recipes import recipes as recipes
