"""Several processes that train one model, each on a device of its own and on its share of every batch.

They are started by torchrun, or by :func:`launch` as torchrun does it. All hold the same weights, draw the same random
numbers and make the same update, since whatever is a statistic of the batch is made one of the whole batch: gradients,
batch normalization, codebooks, loss weights, metrics. So a training is that of one process up to rounding, and its
checkpoint goes on with any number of processes. Rank 0, the main process, is the only one that writes and reports.

Gradients are averaged after the backward pass, and not by DistributedDataParallel: that renames weights in checkpoints,
wraps one forward pass where stage 1 has two networks under one loss, and gains little at networks of this size.

With one process every function here gives back what it is given.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lapo_cli.core.errors import LapoError, UsageError, sendable
from lapo_cli.core.interrupts import INTERRUPTED

_T = TypeVar("_T")
_LOST = ("closed by peer", "reset by peer", "Broken pipe")
_TIMEOUT = timedelta(days=30)  # The others wait for as long as what the main process does alone may take.
_REPORT_SECONDS = 30.0
_alone = False  # Whether the main process does something that concerns no other.


def is_started() -> bool:
    """Whether torchrun started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def world_size() -> int:
    """Number of processes; 1 in what the main process does alone."""
    if _alone:
        return 1
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this process writes and reports."""
    return rank() == 0


@contextmanager
def processes() -> Iterator[None]:
    """Connect the processes that torchrun started, if it did, for the block.

    What the main process raises or reports after the block is for all: the others end here, silently, with its exit
    code. An error that is not of lapo's family is one process's own and is raised there.

    Raises:
        LapoError: another process ended.
    """
    if not is_started():
        yield
        return
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    if gpus and (device := int(os.environ["LOCAL_RANK"])) < torch.cuda.device_count():
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=_TIMEOUT)
    main = is_main()
    if not main:
        os.dup2(2, 1)  # Standard output is for the one result of the main process.
    try:
        yield
    except (LapoError, KeyboardInterrupt) as error:
        if main:
            raise
        raise SystemExit(error.exit_code if isinstance(error, LapoError) else INTERRUPTED) from error
    except RuntimeError as error:  # PyTorch has no class of its own for it.
        if not any(sign in str(error) for sign in _LOST):
            raise
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun asks us to end, which we are about to do.
        if not main:
            raise SystemExit(1) from error
        raise LapoError(
            "Another of the processes that train this model ended, by an error of its own or killed, perhaps "
            "because memory ran out: the same command goes on from the last checkpoint."
        ) from error
    dist.destroy_process_group()
    if not main:
        raise SystemExit


def leave(end: SystemExit) -> None:
    """End this process at once, as ``end`` says, if it is one of several.

    Gloo may leave a thread behind that aborts the process while the interpreter ends, after all work was done. What
    fails in all of them the first one reports, and torchrun ends it when another one ends: so the others wait for it.
    """
    if not is_started():
        return
    if end.code not in (None, 0, INTERRUPTED) and os.environ.get("LOCAL_RANK", "0") != "0":
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        time.sleep(_REPORT_SECONDS)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(end.code if isinstance(end.code, int) else end.code is not None)


def local_device() -> str:
    """The GPU of this process among those of its machine, ``cuda`` where there is one process."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if world_size() > 1 else "cuda"


def part(size: int) -> slice:
    """Which of the ``size`` windows of a batch are for this process; the shares are equal, in the order of ranks.

    Raises:
        UsageError: they cannot be equal.
    """
    share, rest = divmod(size, world_size())
    if rest:
        raise UsageError(
            f"A batch of {size} cannot be shared evenly by {world_size()} processes: use a number of devices that "
            "divides it."
        )
    return slice(rank() * share, (rank() + 1) * share)


class _Gather(torch.autograd.Function):
    """All processes' tensors; the gradient of the sum of all their losses goes back to where each one came from."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[rank()]


def gather(x: Tensor) -> Tensor:
    """The tensors (...) of all processes in the order of ranks, (world size, ...), differentiable."""
    if world_size() == 1:
        return x.unsqueeze(0)
    gathered: Tensor = _Gather.apply(x)  # type: ignore[no-untyped-call]
    return gathered


def mean(x: Tensor) -> Tensor:
    """The mean over processes, without a gradient."""
    return x if world_size() == 1 else gather(x.detach()).mean(0)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients by their means over processes, in one transfer."""
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, averaged in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(averaged.view(gradient.shape))


def any_of(*flags: bool) -> list[bool]:
    """Whether each is true in any process."""
    if world_size() == 1:
        return list(flags)
    ours = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(ours, dist.ReduceOp.MAX)
    return [bool(flag) for flag in ours.tolist()]


def on_main(work: Callable[[], _T]) -> _T:
    """What the main process gets from ``work``, in all of them once it is done; what it raises is raised in all.

    While it works, :func:`world_size` is 1.
    """
    global _alone
    if world_size() == 1:
        return work()
    result, error = None, None
    if is_main():
        _alone = True
        try:
            result, error = _attempt(work)
        finally:
            _alone = False
    outcome: list[Any] = [result, None if error is None else sendable(error)]
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise error or outcome[1]
    shared: _T = outcome[0]
    return shared


def on_all(work: Callable[[], _T]) -> _T:
    """What each process gets from its own ``work``; what the first of them raises is raised in all."""
    if world_size() == 1:
        return work()
    result, error = _attempt(work)
    errors: list[Exception | None] = [None] * world_size()
    dist.all_gather_object(errors, None if error is None else sendable(error))
    for failed in errors:
        if failed is not None:
            raise failed from error
    return result  # type: ignore[return-value]


def _attempt(work: Callable[[], _T]) -> tuple[_T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error


def is_one_machine() -> bool:
    """Whether all processes are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) >= world_size()


def launch(words: Sequence[str], devices: int) -> int:
    """Run a command line of lapo in ``devices`` processes on this machine, as ``torchrun --standalone`` does.

    Args:
        words: of the command line, without the program.

    Returns:
        The exit code; what went wrong has been reported by the main process.

    Raises:
        LapoError: the main process was killed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, launch_agent

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # It logs every exit code.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "60")  # An update of PPO ends before its checkpoint.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    config = LaunchConfig(
        1,
        1,
        devices,
        run_id="lapo",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
    )
    try:
        launch_agent(config, sys.executable, ["-m", "lapo_cli", *words])
    except SignalException:
        return INTERRUPTED
    except ChildFailedError as error:
        failed_rank, failure = error.get_first_failure()
        if failure.exitcode > 0 or failed_rank != 0:
            return max(failure.exitcode, 1)
        raise LapoError(
            f"The main process was ended by signal {-failure.exitcode}, perhaps because memory ran out: the same "
            "command goes on from the last checkpoint."
        ) from error
    return 0
