"""Reproducible results: one file and one config for each, every claim checked."""

from __future__ import annotations

from kolmo.experiments.binary_classification import BinaryClassification
from kolmo.experiments.claims import Claim

__all__ = ["BinaryClassification", "Claim"]
