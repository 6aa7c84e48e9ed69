"""Reproducible results: one file and one config for each, every claim checked."""

from __future__ import annotations

from kolmo.experiments.architectures import Architectures
from kolmo.experiments.binary_classification import BinaryClassification
from kolmo.experiments.claims import Claim
from kolmo.experiments.depth_limit import DepthLimit
from kolmo.experiments.feynman_kac import FeynmanKac
from kolmo.experiments.four_ways import FourWays
from kolmo.experiments.image_dropout import ImageDropout
from kolmo.experiments.large_depth import LargeDepth
from kolmo.experiments.linear_quadratic import LinearQuadratic
from kolmo.experiments.long_time import LongTime
from kolmo.experiments.loss_landscape import LossLandscape
from kolmo.experiments.methods import Methods
from kolmo.experiments.noise_design import NoiseDesign
from kolmo.experiments.overfitting import Overfitting
from kolmo.experiments.regularization import Regularization
from kolmo.experiments.study import Study
from kolmo.experiments.weak_order import WeakOrder

#: experiments that the command line runs alike; the main job has a command of its own
STUDIES: dict[str, type[Study]] = {
    s.name: s
    for s in (
        Overfitting, FourWays, WeakOrder, Regularization, LinearQuadratic, FeynmanKac, Architectures, Methods,
        LossLandscape, ImageDropout, LargeDepth, LongTime, DepthLimit, NoiseDesign,
    )
}  # fmt: skip
#: every experiment and what it shows
EXPERIMENTS = {
    BinaryClassification.name: BinaryClassification.summary,
    **{name: study.summary for name, study in STUDIES.items()},
}

__all__ = [
    "EXPERIMENTS",
    "STUDIES",
    "Architectures",
    "BinaryClassification",
    "Claim",
    "DepthLimit",
    "FeynmanKac",
    "FourWays",
    "ImageDropout",
    "LargeDepth",
    "LinearQuadratic",
    "LongTime",
    "LossLandscape",
    "Methods",
    "NoiseDesign",
    "Overfitting",
    "Regularization",
    "Study",
    "WeakOrder",
]
