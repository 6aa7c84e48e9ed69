"""Reproducible results: one file and one config for each, every claim checked."""

from __future__ import annotations

from kolmo.experiments.binary_classification import BinaryClassification
from kolmo.experiments.claims import Claim
from kolmo.experiments.overfitting import Overfitting

#: every experiment and what it shows
EXPERIMENTS = {e.name: e.summary for e in (BinaryClassification, Overfitting)}

__all__ = ["EXPERIMENTS", "BinaryClassification", "Claim", "Overfitting"]
