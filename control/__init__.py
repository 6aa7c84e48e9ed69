"""Training as optimal control: objective, admissible set, optimisers, verification."""

from __future__ import annotations

from kolmo.control.admissible import Box
from kolmo.control.auditing import Audit, audit
from kolmo.control.lbfgs import Iterate, Result, lbfgs
from kolmo.control.objective import Objective
from kolmo.control.training import Training, train
from kolmo.control.verification import TaylorRates, taylor_test

__all__ = [
    "Audit",
    "Box",
    "Iterate",
    "Objective",
    "Result",
    "TaylorRates",
    "Training",
    "audit",
    "lbfgs",
    "taylor_test",
    "train",
]
