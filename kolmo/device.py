"""Torch devices: by name, and where a network is."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from kolmo.errors import MissingBackendError

Network = TypeVar("Network", bound=nn.Module)


def resolve(device: str) -> str:
    """'cpu' or 'cuda' for 'auto', 'cpu' or 'cuda'; raises MissingBackendError where CUDA is absent."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise MissingBackendError(
            "device: cuda was asked for but torch sees no CUDA device; use --device cpu"
        )
    if device != "cpu" and not device.startswith("cuda"):
        raise MissingBackendError(f"device: {device!r} is unknown; expected auto, cpu or cuda")
    return device


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights are; the processor where it has none."""
    return next((p.device for p in network.parameters()), torch.device("cpu"))


def on_processor(network: Network) -> Network:
    """The network itself, or a copy of one that is elsewhere."""
    return network if device_of(network).type == "cpu" else copy.deepcopy(network).cpu()
