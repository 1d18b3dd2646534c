"""Short fits that write their losses, alone or as one of several processes: `python -m helpers.curve FOLDER FITS`.

FITS is JSON: by the name of a folder in FOLDER, the family and what is odd.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from helpers.contracts_settings import CLASSES, SETTINGS, SHAPE, digits
from pipeline.core import work
from pipeline.generators import registry
from pipeline.runtime import parallel, training

STEPS = 30


def fit(folder: Path, family: str, what: str = "") -> None:
    """Fit in `folder`. `what` is odd: `apart`, gradients are not averaged; `die`, a process is killed, once; `diverge`; `wait`,
    there is no end."""
    short = {
        "steps": 10**6 if what == "wait" else STEPS,
        "batch_images": 32,
        "dropout": 0.1,
        "lr": 1e30 if what == "diverge" else 4e-3,
    }
    kind, losses, step, average = registry.family(family), dict[int, float](), training.Learner.step, parallel.average

    def noted(self: training.Learner, loss: training.Tensor, k: int) -> float:
        if what == "die" and k == STEPS // 2 and parallel.rank() == 1 and not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        losses[k] = step(self, loss, k)
        (folder / f"at-{parallel.rank()}").write_text(f"{os.getpid()} {k}")
        return losses[k]

    rows = set[int]()
    hook = register_module_forward_pre_hook(
        lambda module, given: rows.add(len(given[0])) if isinstance(module, nn.Conv2d) else None
    )
    training.Learner.step = noted  # type: ignore[method-assign]
    if what == "apart":
        parallel.average = lambda parameters, loss: loss
    training.CHECKPOINT_SECONDS = 0.0
    checkpoints = folder / ".checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    try:
        model = kind(kind.Config(**(SETTINGS[family] | short)), shape=SHAPE, n_classes=CLASSES)
        model.fit(*digits(), seed=0, folder=checkpoints)
    finally:
        training.Learner.step, parallel.average = step, average  # type: ignore[method-assign]
        hook.remove()
    (folder / f"rows-{parallel.rank()}").write_text(str(rows))
    if parallel.rank() == 0:
        model.save(folder)
        work.write_json(folder / "losses.json", [losses[k] for k in sorted(losses)])


if __name__ == "__main__":
    place = Path(sys.argv[1])
    fits = json.loads(sys.argv[2])
    sys.exit(parallel.joined(lambda: [fit(place / name, *what) for name, what in fits.items()], place))
