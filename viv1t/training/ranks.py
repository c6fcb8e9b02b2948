"""Training on several GPUs: processes that torchrun starts, each with some of the mice, on one core.

Every process has the whole model and trains the core on its own mice's batches; the core's gradients are added up over
processes before each update, so that a step is the one a single process would make. A mouse belongs to one process,
which alone trains its readout, shifter and modulator and keeps their moments. Process 0 writes the run folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from viv1t.errors import ConfigError, TrainingError
from viv1t.optim.optimization import Optimization

JOINING = timedelta(minutes=1)  # torchrun starts all anew if they do not find each other
WAITING = timedelta(minutes=30)  # of one process for the others: statistics of ten mice may take a while


class Ranks:
    """The processes that train together; a single one unless `started` has joined others.

    Attributes:
        rank: number of this process.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.size, self._device = rank, size, device
        self._summed: list[bool] | None = None

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def may_clear(self) -> bool:
        """Whether this is the first start by torchrun: after a loss it gives the same command, and nothing is to go.

        Raises:
            ConfigError: there are several machines, which cannot tell.
        """
        if self.size > 1 and _machines() > 1:
            raise ConfigError(
                "--clear_output_dir with several machines would delete the run whenever torchrun starts it anew: leave "
                "the option out, and choose another --output_dir or delete the old one by hand"
            )
        return _variable("TORCHELASTIC_RESTART_COUNT", 0) == 0

    def sum(self, values: Tensor) -> Tensor:
        """`values` added up over processes; every process must ask."""
        if self.size == 1:
            return values
        total = values.to(self._device)
        with _peers():
            dist.all_reduce(total)
        return total.to(values.device)

    def agree(self, *wishes: bool) -> list[bool]:
        """For each wish, whether any process has it; every process must ask."""
        if self.size == 1:
            return list(wishes)
        return [bool(wish) for wish in self.sum(torch.tensor(wishes, dtype=torch.float32)).tolist()]

    def least(self, value: int) -> int:
        """The smallest of the processes' values; every process must ask."""
        if self.size == 1:
            return value
        smallest = torch.tensor(value, device=self._device)
        with _peers():
            dist.all_reduce(smallest, dist.ReduceOp.MIN)
        return int(smallest)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """What is inside is done by the first process, then by all others."""
        if not self.first:
            self._wait()
        yield
        if self.first:
            self._wait()

    def sum_gradients(self, parameters: Sequence[nn.Parameter], values: Tensor) -> Tensor:
        """Adds up gradients over processes, in one exchange; a parameter without one in all of them stays so.

        Which those are is asked once, so that later steps do not wait for the answer.

        Args:
            parameters: the same in every process and every step, as is which of them have gradients.
            values: (n,), added up too.

        Returns:
            The sum of `values`.
        """
        if self.size == 1:
            return values
        if self._summed is None:
            self._summed = self.agree(*(p.grad is not None for p in parameters))
        summed = [p for p, anywhere in zip(parameters, self._summed, strict=True) if anywhere]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in summed]
        flat = self.sum(torch.cat([values, *(grad.flatten() for grad in grads)]))
        values, *sums = flat.split([len(values), *(p.numel() for p in summed)])
        for parameter, gradient in zip(summed, sums, strict=True):
            parameter.grad = gradient.view_as(parameter)
        return values

    def average(self, buffers: Sequence[Tensor]) -> None:
        """Makes buffers the mean of what they are in all processes."""
        if self.size > 1 and buffers:
            means = self.sum(torch.cat([b.flatten() for b in buffers])) / self.size
            for buffer, part in zip(buffers, means.split([b.numel() for b in buffers]), strict=True):
                buffer.copy_(part.view_as(buffer))

    def collect(self, owned: Mapping[int, Sequence[nn.Module]], optimization: Optimization) -> None:
        """Gives every process the parameters, what is remembered of them, and the buffers, as their owner has them.

        Args:
            owned: modules by the process that trains them.
            optimization: of their parameters.
        """
        if self.size == 1:
            return
        known = optimization.optimizer.state
        for owner, modules in owned.items():
            parameters = [p for module in modules for p in module.parameters()]
            states = [optimization.state_of(p) for p in parameters]
            begun = torch.tensor([float(bool(known.get(p))) for p in parameters])
            kept = [value for state in states for value in state.values()]
            tensors = [*(p.data for p in parameters), *kept, *(b for m in modules for b in m.buffers())]
            if not tensors:
                continue
            tensors.append(begun)
            flat = torch.cat([t.flatten().to(self._device, torch.float32) for t in tensors])
            with _peers():
                dist.broadcast(flat, src=owner)
            if owner == self.rank:
                continue
            for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))
            for parameter, state, there in zip(parameters, states, begun.tolist(), strict=True):
                if there:
                    known[parameter] = state

    def _wait(self) -> None:
        if self.size > 1:
            with _peers():
                dist.barrier()


@contextmanager
def _peers() -> Iterator[None]:
    """Says in one line that another process is gone."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise TrainingError(
            f"another process of this run has ended, or cannot be reached ({reason}); started again, the run goes on "
            "from its last save"
        ) from error


def _variable(name: str, default: int) -> int:
    """A launcher's variable; an empty one is as good as none."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal():
        raise ConfigError(
            f"the environment's {name} is {text!r}, where a whole number is expected: start with torchrun"
        )
    return int(text)


def _processes() -> int:
    """How many processes the launcher has started.

    Raises:
        ConfigError: its variables do not fit together.
    """
    size, rank = _variable("WORLD_SIZE", 1), _variable("RANK", 0)
    absent = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name, "").strip()]
    if size > 1 and absent:
        raise ConfigError(
            f"the environment's WORLD_SIZE is {size}, but {' and '.join(absent)} not set: start with torchrun, which "
            "sets all of them, or unset WORLD_SIZE to train in one process"
        )
    if not rank < size:
        raise ConfigError(
            f"the environment's RANK is {rank}, but WORLD_SIZE is {size}: start with torchrun, which sets both, or "
            "unset RANK to train in one process"
        )
    return size


def _machines() -> int:
    return _variable("GROUP_WORLD_SIZE", 1)


@contextmanager
def started(device: torch.device) -> Iterator[Ranks]:
    """Joins the processes that torchrun has started, if it has.

    Args:
        device: where tensors are exchanged; this process's own GPU.

    Raises:
        ConfigError: torchrun's variables are there, but do not fit together, or PyTorch cannot join.
    """
    size = _processes()
    if size == 1:
        yield Ranks()
        return
    if device.type == "cuda":
        torch.cuda.set_device(_variable("LOCAL_RANK", 0))
    try:
        store, rank, size = next(rendezvous("env://", timeout=JOINING))
        if _machines() == 1:
            # torchrun keeps its store over restarts, with the addresses of processes that are gone
            # (pytorch/pytorch#135712). Machines count restarts each for themselves: see the README for those.
            attempt = _variable("TORCHELASTIC_RESTART_COUNT", 0)
            store = dist.PrefixStore(str(attempt), store)  # type: ignore[attr-defined]
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=JOINING)
        dist.distributed_c10d._set_pg_timeout(WAITING)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"joining {size} processes failed: {str(error).splitlines()[0]}") from error
    try:
        yield Ranks(dist.get_rank(), size, device)
    finally:
        dist.destroy_process_group()
