"""Training as optimal control: objective, admissible set, optimisers, verification."""

from __future__ import annotations

from kolmo.control.admissible import Admissible, Balls, Box, Interval, Joint
from kolmo.control.auditing import Audit, audit
from kolmo.control.bilevel import Hypergradient, hypergradient
from kolmo.control.continuation import continuation
from kolmo.control.design import Design, Evaluation, design
from kolmo.control.gauss_newton import GaussNewton
from kolmo.control.hamiltonian import Optimality, hamiltonian, leading, optimality
from kolmo.control.lbfgs import Iterate, Result, lbfgs
from kolmo.control.newton import NewtonStep, newton
from kolmo.control.objective import Objective
from kolmo.control.successive import Sweep, successive_approximations
from kolmo.control.training import Training, train
from kolmo.control.verification import TaylorRates, taylor_test

__all__ = [
    "Admissible",
    "Audit",
    "Balls",
    "Box",
    "Design",
    "Evaluation",
    "GaussNewton",
    "Hypergradient",
    "Interval",
    "Iterate",
    "Joint",
    "NewtonStep",
    "Objective",
    "Optimality",
    "Result",
    "Sweep",
    "TaylorRates",
    "Training",
    "audit",
    "continuation",
    "design",
    "hamiltonian",
    "hypergradient",
    "lbfgs",
    "leading",
    "newton",
    "optimality",
    "successive_approximations",
    "taylor_test",
    "train",
]
