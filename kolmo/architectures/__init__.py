"""Residual architectures as discretisations of differential equations, on R^d and on images.

>>> import torch
>>> from kolmo.architectures import LMResNet, TwoLayer
>>> network = LMResNet([TwoLayer.random(2, 8, seed=k) for k in range(6)], step=0.5)
>>> x = torch.zeros(5, 2, dtype=torch.float64)
>>> tuple(network(x).shape), tuple(network.k.shape)
((5, 2), (5,))
"""

from __future__ import annotations

from kolmo.architectures.base import Discretisation, Perturbation
from kolmo.architectures.blocks import Aggregated, Field, Layer, TwoLayer
from kolmo.architectures.multistep import LMResNet, LMResNeXt
from kolmo.architectures.one_step import FractalNet, PolyNet, ResNet
from kolmo.architectures.reversible import RevNet

#: every architecture by name
ARCHITECTURES: dict[str, type[Discretisation]] = {
    "resnet": ResNet,
    "polynet": PolyNet,
    "fractalnet": FractalNet,
    "revnet": RevNet,
    "lm_resnet": LMResNet,
    "lm_resnext": LMResNeXt,
}

__all__ = [
    "ARCHITECTURES",
    "Aggregated",
    "Discretisation",
    "Field",
    "FractalNet",
    "LMResNeXt",
    "LMResNet",
    "Layer",
    "Perturbation",
    "PolyNet",
    "ResNet",
    "RevNet",
    "TwoLayer",
]
