"""Trained networks for those without Kolmo: a torch state dict with the script that reads it, or ONNX.

>>> import kolmo, torch
>>> model = kolmo.export.plain(kolmo.ResidualNetwork(dim=2, width=4, depth=3))
>>> tuple(model(torch.zeros(5, 2, dtype=torch.float64)).shape)
(5,)
"""

from __future__ import annotations

from kolmo.export.networks import FORMATS, plain, write

__all__ = ["FORMATS", "plain", "write"]
