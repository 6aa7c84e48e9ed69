"""Processes that train together, as torchrun starts them: `torchrun --nproc-per-node 2 -m kolmo.images ...`.

Outside of `joined`, and in a process that torchrun did not start, there is one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_T = TypeVar("_T")


@contextmanager
def joined(device: str) -> Iterator[str]:
    """The group of processes that torchrun started; gives this one's device.

    device: 'cpu' (gloo) or 'cuda' (nccl, a device for each process of a machine).
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    own = device
    if device.startswith("cuda"):
        own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(own)
    dist.init_process_group("gloo" if device == "cpu" else "nccl")
    try:
        yield own
    finally:
        dist.destroy_process_group()


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def number() -> int:
    """This one's number, from 0."""
    return dist.get_rank() if count() > 1 else 0


class _Sum(torch.autograd.Function):
    """The sum over all processes, and of the cotangents backward."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        total = cotangent.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def mean(value: Tensor) -> Tensor:
    """The mean over all processes, differentiable."""
    if count() == 1:
        return value
    total: Tensor = _Sum.apply(value)
    return total / count()


def agreed(value: _T) -> _T:
    """The first process's value, in all of them."""
    if count() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def spread(network: nn.Module, device: str) -> nn.Module:
    """The network whose gradients are the means over all processes; itself where there is one."""
    if count() == 1:
        return network
    devices = [torch.device(device)] if device.startswith("cuda") else None
    return DistributedDataParallel(network, device_ids=devices)
