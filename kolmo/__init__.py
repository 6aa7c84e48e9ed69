r"""Kolmo: noise-injected training of residual networks as control of the backward Kolmogorov equation.

>>> import kolmo
>>> problem = kolmo.Problem(
...     data=kolmo.data.moons(200),
...     network=kolmo.ResidualNetwork(dim=2, width=16, depth=20, seed=0),
...     noise=kolmo.noise.BernoulliDropout(keep=0.8),
... )
>>> equation = kolmo.pde.BackwardKolmogorov(problem, cells=32)
>>> loss = equation.expected_loss()          # a torch scalar
>>> loss.backward()                          # exact discrete adjoint
>>> tuple(problem.network.V.grad.shape)
(20, 2, 16)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: public name -> module that holds it; modules load on first use, so that `import kolmo` is quick
_INDEX = {
    "Problem": "kolmo.problem",
    "Dataset": "kolmo.data",
    "LayeredNetwork": "kolmo.network",
    "ResidualNetwork": "kolmo.network",
    "FieldNetwork": "kolmo.module_network",
    "KolmogorovClassifier": "kolmo.classifier",
    "Chain": "kolmo.chain",
    "SDE": "kolmo.sde",
    "modified_equation": "kolmo.modified",
    "KolmoError": "kolmo.errors",
    "InputError": "kolmo.errors",
    "InfeasibleError": "kolmo.errors",
    "AuditError": "kolmo.errors",
}
_MODULES = (
    "architectures",
    "chain",
    "control",
    "data",
    "errors",
    "experiments",
    "export",
    "images",
    "logging",
    "loss",
    "network",
    "noise",
    "pde",
    "sde",
    "training",
)

__all__ = ["__version__", *_INDEX, *_MODULES]

if TYPE_CHECKING:
    from kolmo import (
        architectures,
        chain,
        control,
        data,
        errors,
        experiments,
        export,
        images,
        logging,
        loss,
        network,
        noise,
        pde,
        sde,
        training,
    )
    from kolmo.chain import Chain
    from kolmo.classifier import KolmogorovClassifier
    from kolmo.data import Dataset
    from kolmo.errors import AuditError, InfeasibleError, InputError, KolmoError
    from kolmo.modified import modified_equation
    from kolmo.module_network import FieldNetwork
    from kolmo.network import LayeredNetwork, ResidualNetwork
    from kolmo.problem import Problem
    from kolmo.sde import SDE


def __getattr__(name: str) -> Any:
    if name in _INDEX:
        return getattr(importlib.import_module(_INDEX[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"kolmo.{name}")
    raise AttributeError(f"module 'kolmo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
