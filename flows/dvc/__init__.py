"""The only caller of DVC: each command is a process, since DVC locks, prints and stops per process.

commands    stages, changed, push, pull, checkout, share
reproduce   stages, one after the other: ran | cached | skipped
results     outs, contents, verify, sweep: what dvc.lock has recorded, and whether the cache still holds it
locks       settle: who else works in the project; what the dead have left in DVC's list is removed before each command
programs    the Python programs that import DVC
"""

from flows.dvc.commands import DvcError, cache, changed, checkout, pull, push, share, stages
from flows.dvc.locks import settle
from flows.dvc.reproduction import GRACE, Outcome, StageFailed, reproduce
from flows.dvc.results import contents, outs, sweep, verify

__all__ = [
    "GRACE", "DvcError", "Outcome", "StageFailed", "cache", "changed", "checkout", "contents", "outs", "pull", "push",
    "reproduce", "settle", "share", "stages", "sweep", "verify",
]  # fmt: skip
