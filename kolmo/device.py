"""Torch devices by name."""

from __future__ import annotations

import torch

from kolmo.errors import MissingBackendError


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
