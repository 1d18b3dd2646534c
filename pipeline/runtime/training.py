"""The one training loop.

A Learner is a network with its optimiser, its learning-rate schedule and the moving average of its weights:

    g   <- clip(grad L(theta), max_norm)
    theta <- AdamW(theta, g; lr * s(k)),   s(k) = min(1, (k + 1) / warmup) * (1 + cos(pi k / steps)) / 2
    ema <- beta_k ema + (1 - beta_k) theta,   beta_k = min(beta, (k + 1) / (k + 10))

`loop` calls update(k) for k = 0 … steps - 1. Every random draw of step k comes from derive(seed, name, k), and torch's global
stream (dropout) is reset per step in a fork. So a step is a function of the weights before it, and a run that was killed and
resumed gives the same weights as an undisturbed one. Adversarial families pass two learners.

Checkpoints are safetensors, written whole or not at all, with their hash in their name. The last two are kept; a torn one is
reported and skipped. A non-finite loss stops the run before it touches the weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.core import work
from pipeline.core.seeds import torch_stream
from pipeline.errors import Diverged, OutOfMemory
from pipeline.runtime import parallel

CHECKPOINT_SECONDS = 20.0


@dataclass(frozen=True)
class Optimisation:
    """How a network is optimised. `ema` is the decay per step (None: no average); `clip` bounds the norm of the gradient."""

    steps: int
    lr: float
    weight_decay: float = 0.0
    warmup: int = 50
    clip: float = 1.0
    ema: float | None = None
    betas: tuple[float, float] = (0.9, 0.99)


class Learner:
    """A network, its optimiser and its moving average. `shares` names parameters that learn with a share of plan.lr."""

    def __init__(self, network: nn.Module, plan: Optimisation, shares: Mapping[str, float] | None = None) -> None:
        self.network, self.plan = network, plan
        learned = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.parameters = list(learned.values())
        # Weight decay is for matrices (Loshchilov & Hutter, 2019), not for biases, gains and embeddings of one row.
        groups = defaultdict[tuple[float, float], list[nn.Parameter]](list)
        for name, p in learned.items():
            groups[(shares or {}).get(name, 1.0), plan.weight_decay if p.ndim > 1 else 0.0].append(p)
        self.optimiser = torch.optim.AdamW(
            [{"params": held, "share": share, "weight_decay": decay} for (share, decay), held in groups.items()],
            lr=plan.lr, betas=plan.betas, fused=True,
        )  # fmt: skip
        self.ema = [p.detach().clone() for p in self.parameters] if plan.ema is not None else []

    def step(self, loss: Tensor, k: int) -> float:
        """One update by `loss` at step k. Returns the loss. Raises Diverged before a non-finite loss touches the weights."""
        plan = self.plan
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        value = parallel.average(self.parameters, float(loss.detach()))
        if not math.isfinite(value):
            raise Diverged(
                f"loss {value} at step {k}", expected="a finite loss", remedy="lower lr in this section of params.yaml"
            )
        rate = plan.lr * min(1.0, (k + 1) / max(1, plan.warmup)) * 0.5 * (1 + math.cos(math.pi * k / plan.steps))
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["share"]
        nn.utils.clip_grad_norm_(self.parameters, plan.clip)
        self.optimiser.step()
        if plan.ema is not None:
            with torch.no_grad():  # otherwise the averages would keep the graph of every step
                torch._foreach_lerp_(self.ema, list[Tensor](self.parameters), 1 - min(plan.ema, (k + 1) / (k + 10)))
        return value

    @torch.no_grad()
    def finish(self) -> nn.Module:
        """The network with its averaged weights, ready for use."""
        for parameter, average in zip(self.parameters, self.ema, strict=False):
            parameter.copy_(average)
        return self.network.eval()

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint must hold, by name."""
        out = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        out |= {f"ema.{i}": value for i, value in enumerate(self.ema)}
        for i, parameter in enumerate(self.parameters):
            out |= {f"optimiser.{i}.{name}": value for name, value in self.optimiser.state.get(parameter, {}).items()}
        return {name: value.detach().contiguous() for name, value in out.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that `tensors` returned."""
        prefix = "network."
        self.network.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        for i, average in enumerate(self.ema):
            average.copy_(tensors[f"ema.{i}"])
        for i, parameter in enumerate(self.parameters):
            prefix = f"optimiser.{i}."
            state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if state:
                # The fused optimiser walks memory: moments need the memory layout of their parameter (channels_last).
                self.optimiser.state[parameter] = {
                    k: torch.empty_like(parameter).copy_(v)
                    if v.shape == parameter.shape and k != "step"
                    else v.to(parameter.device, copy=True)
                    for k, v in state.items()
                }


def loop(
    learners: Mapping[str, Learner],
    update: Callable[[int], float],
    *,
    steps: int,
    seed: int,
    name: str,
    images_per_step: int,
    folder: Path | None = None,
    quiet: bool = False,
) -> None:
    """Call update(k) for every step. It computes the losses, calls Learner.step and returns the loss to show.

    `folder` keeps the checkpoints; a run that finds some there resumes from the last whole one. On SIGTERM and Ctrl-C a
    checkpoint is written first. Raises Diverged for a non-finite loss and keeps the last good checkpoint.
    """
    start = _resume(learners, folder, name) if folder else 0
    saved = time.monotonic()
    bar = tqdm(
        total=steps * images_per_step, initial=start * images_per_step, desc=name, unit=" images", unit_scale=True,
        disable=quiet or parallel.rank() > 0, mininterval=0.5 if sys.stderr.isatty() else 10.0, dynamic_ncols=True,
    )  # fmt: skip
    with bar, _stop_signals() as stopped:
        for k in range(start, steps):
            with torch_stream(seed, name, "dropout", k), _memory(name):
                loss = update(k)
            bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            bar.update(images_per_step)
            leave = parallel.anyone(bool(stopped))  # all together, so that none waits for a process that has left
            if folder and parallel.rank() == 0 and (leave or time.monotonic() - saved > CHECKPOINT_SECONDS):
                _save(learners, folder, k + 1)
                saved = time.monotonic()
            if leave:
                raise KeyboardInterrupt if stopped[:1] == [signal.SIGINT] else SystemExit(128 + signal.SIGTERM)


@contextlib.contextmanager
def _memory(name: str) -> Iterator[None]:
    """Turn exhausted memory into OutOfMemory; pass all other errors on."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise OutOfMemory(
            f"{name}: memory ran out in a step of the fit: {str(error).partition(chr(10))[0]}",
            expected="a batch that fits",
            remedy="lower batch_images or width in this section of params.yaml",
        ) from error


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that the memory of an accelerator or of this machine ran out."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _save(learners: Mapping[str, Learner], folder: Path, step: int) -> None:
    data = save_tensors({f"{n}.{k}": v for n, learner in learners.items() for k, v in learner.tensors().items()})
    work.write(folder / f"{step:09d}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors", data)
    for old in sorted(folder.glob("*.safetensors"))[:-2]:
        old.unlink()


def _resume(learners: Mapping[str, Learner], folder: Path, name: str) -> int:
    for file in sorted(folder.glob("*.safetensors"), reverse=True):
        step, digest = file.stem.split("-")
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest()[:16] != digest:
            print(f"{name}: checkpoint {file.name} is torn; trying the one before", file=sys.stderr)
            file.unlink()
            continue
        tensors = load_tensors(data)
        for n, learner in learners.items():
            learner.restore({k.removeprefix(f"{n}."): v for k, v in tensors.items() if k.startswith(f"{n}.")})
        print(f"{name}: resuming at step {int(step)}", file=sys.stderr)
        return int(step)
    return 0


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that receives the numbers of SIGTERM and SIGINT signals, so that a step is never cut in half."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    before = {s: signal.signal(s, note) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """Within, torch computes on `n` threads of the processor; 0 leaves their number as it is.

    Networks for tiny images gain little from a second thread and stall on a busy machine while they wait for it. Another
    number of threads also rounds differently.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device() -> torch.device:
    """The accelerator if there is one, else the processor."""
    return (
        torch.accelerator.current_accelerator() or torch.device("cpu")
        if torch.accelerator.is_available()
        else torch.device("cpu")
    )


def autocast(precision: str, where: torch.device) -> torch.autocast:
    """bf16 if the hardware multiplies it (`auto`), always (`bf16`) or never (`fp32`)."""
    fast = precision == "bf16" or (precision == "auto" and multiplies_bf16(where))
    return torch.autocast(where.type, dtype=torch.bfloat16, enabled=fast)


def multiplies_bf16(where: torch.device) -> bool:
    """Whether the hardware multiplies bf16."""
    return where.type != "cpu" or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
