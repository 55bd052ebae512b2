"""Several processes that train one model: who works on which part of a batch, and what they exchange.

``torchrun`` starts them and Accelerate joins them. There is no ``DistributedDataParallel`` around the networks: a
method has several players, each updated by itself and some of them in the midst of the student's forward pass, so the
trainer averages the gradients of one update, of one player's parameters, when they are complete.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, distributed, nn


class Processes:
    """This process among those that ``torchrun`` started; alone without it.

    Args:
        on_cpu: exchange over gloo, even where there are CUDA devices.

    Attributes:
        rank: 0 to ``count - 1``; process 0 writes the files.
        count: how many there are.
        device: what Accelerate assigned to this process; with one process, the caller's choice counts.
    """

    def __init__(self, on_cpu: bool = False) -> None:
        # Others wait while process 0 draws scenes or writes a teacher cache: for hours, of a large data set.
        self._state = PartialState(cpu=on_cpu, timeout=timedelta(days=7))
        self.rank, self.count = self._state.process_index, self._state.num_processes
        self.device: torch.device = self._state.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Process 0 runs the block, then the others (who find what it made)."""
        with self._state.main_process_first():
            yield

    def gather(self, value: Any) -> list[Any]:
        """The *value* of each process, in order, on all of them."""
        return [value] if self.count == 1 else gather_object([value])

    def largest(self, number: int) -> int:
        """The largest *number* of all processes."""
        return max(self.gather(number))

    def mean(self, values: Tensor) -> Tensor:
        """Mean of a tensor over the processes."""
        return mean_over_processes(values)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """See :func:`average_gradients`."""
        average_gradients(parameters)

    @torch.no_grad()
    def average_buffers(self, *modules: nn.Module) -> None:
        """Mean of the floating-point buffers (running statistics) over the processes."""
        if self.count > 1:
            _average([b for module in modules for b in module.buffers() if b.is_floating_point()])


def process_count() -> int:
    """How many processes share the work, whoever has started them."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def mean_over_processes(values: Tensor) -> Tensor:
    """Mean of a tensor over the processes."""
    if (count := process_count()) == 1:
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total / count


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Mean of each parameter's gradient over the processes, in one exchange.

    A gradient that some have counts as zero where it is absent; one that none has stays absent, so that weight decay
    does not move its parameter.
    """
    if process_count() == 1:
        return
    parameters = list(parameters)
    absent = [parameter for parameter in parameters if parameter.grad is None]
    for parameter in absent:
        parameter.grad = torch.zeros_like(parameter)
    present = torch.ones(len(parameters), device=parameters[0].device if parameters else None)
    if absent:
        without = {id(parameter) for parameter in absent}
        present *= torch.tensor([float(id(p) not in without) for p in parameters], device=present.device)
    _average([*(parameter.grad for parameter in parameters if parameter.grad is not None), present])
    if absent:
        for parameter, share in zip(parameters, present.tolist(), strict=True):
            if share == 0:
                parameter.grad = None


@torch.no_grad()
def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give every process the *tensors* of the first."""
    if process_count() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, 0)


def _average(tensors: list[Tensor]) -> None:
    if not tensors:
        return
    flat = mean_over_processes(torch.cat([tensor.flatten().float() for tensor in tensors]))
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
