"""Data-parallel training: m processes share each batch of n rows, and its gradient.

    g = (1 / m) sum_r grad L(rows r n / m … (r + 1) n / m - 1) = grad L(all n rows),   L a mean over rows

Every process makes the random draws of the whole batch, from the same streams as a single process, and keeps its own rows of
them (`share`; Dropout does so with its masks). So the loss is that of a single process except for the order in which a mean is
summed. Weights for another m are therefore close but not equal: m is one of the settings that decide a result (fit.processes).

accelerate averages the gradients over gloo, or NCCL on GPUs (untested), once the backward pass is done. A network may then be
called several times in a step, which the hooks of DistributedDataParallel do not support. A single process is not affected.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import errors
from pipeline.core import work
from pipeline.errors import ConfigError, TailforgeError, WorkerLost

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters

ERROR = ".error.json"  # in the folder of the work: the error of a process
LOOPBACK = "loopback"
START_SECONDS = 300  # for all processes to connect
LEAVE_SECONDS = 15  # for processes to exit after SIGTERM: less than the stage itself has
PR_SET_PDEATHSIG = 1


def size() -> int:
    """How many processes share a batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process among them. The first one writes files and shows progress."""
    return dist.get_rank() if size() > 1 else 0


def share(*tensors: Tensor) -> list[Tensor]:
    """This process's rows of each tensor (n, …); n must be a multiple of `size()`."""
    return [tensor.tensor_split(size())[rank()] for tensor in tensors] if size() > 1 else list(tensors)


def average(parameters: Sequence[Tensor], loss: float) -> float:
    """Replace the gradients of `parameters` by their mean over all processes. Returns the mean of the losses."""
    if size() == 1:
        return loss
    from accelerate.utils import reduce

    gradients = [p.grad for p in parameters if p.grad is not None]
    whole = torch.cat([g.flatten() for g in gradients] + [torch.tensor([loss], device=gradients[0].device)])
    *means, mean = reduce(whole, reduction="mean").split([*(g.numel() for g in gradients), 1])
    for gradient, own in zip(gradients, means, strict=True):
        gradient.copy_(own.view_as(gradient))
    return float(mean)


def anyone(told: bool) -> bool:
    """Whether `told` is true in any process."""
    if size() == 1:
        return told
    from accelerate.utils import reduce

    where = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
    return bool(reduce(torch.tensor([float(told)], device=where), reduction="sum") > 0)


class Dropout(nn.Dropout):
    """nn.Dropout (Srivastava et al., 2014). Each of several processes has its own rows of the mask of the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, …) -> the same."""
        if size() == 1 or not self.training or self.p == 0:
            return super().forward(x)
        ones = torch.ones_like(x)  # with the memory layout of x, which decides the order of the draws
        return x * share(F.dropout(torch.cat([ones] * size()), self.p, training=True))[0]


def launch(module: str, processes: int, folder: Path, *arguments: str) -> None:
    """Run `python -m module folder arguments` as `processes` processes of torchrun that share batches, and wait for their end.

    If one fails, all end. Raises the TailforgeError of a process, WorkerLost if a process died, SystemExit if this process
    received a signal to stop, and ConfigError if there are fewer GPUs than processes.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if 0 < torch.cuda.device_count() < processes:
        raise ConfigError(
            f"fit.processes={processes}",
            expected=f"at most {torch.cuda.device_count()}, one per GPU",
            remedy="lower fit.processes",
        )
    (folder / ERROR).unlink(missing_ok=True)
    rendezvous_handler_registry.register(LOOPBACK, _loopback)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # its report of a failure fills a page
    settings = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, max_restarts=0, run_id=str(os.getpid()), rdzv_backend=LOOPBACK,
        local_addr="127.0.0.1", shutdown_timeout=LEAVE_SECONDS,
    )  # fmt: skip
    try:
        safe = ["-P"] if sys.flags.safe_path else []  # as this process: the working folder is not first on sys.path
        elastic_launch(settings, sys.executable)(*safe, "-m", module, str(folder), *arguments)
    except SignalException as told:
        raise SystemExit(128 + told.sigval) from None
    except ChildFailedError as failed:
        if (folder / ERROR).exists():
            kind, message = json.loads((folder / ERROR).read_text(encoding="utf-8"))
            raise getattr(errors, kind)(message) from None
        _, first = failed.get_first_failure()
        raise WorkerLost(
            f"one of {processes} processes of a fit ended with status {first.exitcode}",
            status=first.exitcode,
            expected="processes that live until the fit is done",
            remedy="its output is above; run again, it resumes from the last checkpoint",
        ) from None


def _loopback(wanted: RendezvousParameters) -> RendezvousHandler:
    """Where processes find each other: a store that only this machine can reach.

    torchrun's own store listens on every interface, and its usual rendezvous unpickles whatever it finds there.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch names it in no __all__
    from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

    class Loopback(StaticTCPRendezvous):
        def get_backend(self) -> str:
            return LOOPBACK

    listener = socket.create_server(("127.0.0.1", 0))
    host, port = listener.getsockname()
    handler = Loopback(host, port, 0, 1, wanted.run_id, START_SECONDS)
    handler._store = TCPStore(host, port, 1, True, multi_tenant=True, master_listen_fd=listener.detach())
    return handler


def joined(fit: Callable[[], None], folder: Path) -> int:
    """In a process of `launch`: find the others and `fit` with them. Returns the exit status."""
    from accelerate import PartialState

    if sys.platform == "linux":  # torchrun starts it in a session of its own, but it must not outlive the stage
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    state = PartialState(cpu=not torch.cuda.is_available())
    torch.set_num_threads(max(1, torch.get_num_threads() // state.num_processes))
    try:
        fit()
    except TailforgeError as error:
        work.write_json(folder / ERROR, [type(error).__name__, str(error)])
        return error.exit_status
    state.destroy_process_group()
    return 0
