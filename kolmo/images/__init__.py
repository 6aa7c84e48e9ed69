"""Residual networks on images: data, networks, places for the noise, and training.

>>> from kolmo.images import ImageNetwork, NetworkPlan, digits
>>> data = digits()
>>> network = ImageNetwork(NetworkPlan("resnet", depth=20, width=8), *data.shape[:1], data.classes)
>>> tuple(network(data.normalised(data.test.images[:5])).shape), network.parameter_count
((5, 10), 79474)
"""

from __future__ import annotations

from kolmo.images.augmentation import Augmentation, moved
from kolmo.images.data import ImageData, ImageSet, digits, load
from kolmo.images.networks import ImageNetwork, NetworkPlan
from kolmo.images.placement import PLACEMENTS, Noise, Placement, placement
from kolmo.images.schedule import Schedule
from kolmo.images.training import Epoch, Outcome, Score, score, train, train_once

__all__ = [
    "PLACEMENTS",
    "Augmentation",
    "Epoch",
    "ImageData",
    "ImageNetwork",
    "ImageSet",
    "NetworkPlan",
    "Noise",
    "Outcome",
    "Placement",
    "Schedule",
    "Score",
    "digits",
    "load",
    "moved",
    "placement",
    "score",
    "train",
    "train_once",
]
