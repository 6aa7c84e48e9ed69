"""The backward Kolmogorov equation by finite elements (knows nothing of networks' insides)."""

from __future__ import annotations

from kolmo.pde.backend import make_space, resolve, space_on
from kolmo.pde.control_variate import value_gradient
from kolmo.pde.exact import ExactRecursion
from kolmo.pde.exact_value import ExactValue, resolve_exact
from kolmo.pde.kolmogorov import BackwardKolmogorov, Solution
from kolmo.pde.mesh import DEFAULT_CELLS, Mesh, box_mesh
from kolmo.pde.model_error import ModelProbes, model_error
from kolmo.pde.propagator import Explicit, Implicit, Propagator
from kolmo.pde.residual import Residuals, linear_march, residuals
from kolmo.pde.resolution import Effort, ResolvedValue, resolve_value
from kolmo.pde.space import Space

__all__ = [
    "DEFAULT_CELLS",
    "BackwardKolmogorov",
    "Effort",
    "ExactRecursion",
    "ExactValue",
    "Explicit",
    "Implicit",
    "Mesh",
    "ModelProbes",
    "Propagator",
    "Residuals",
    "ResolvedValue",
    "Solution",
    "Space",
    "box_mesh",
    "linear_march",
    "make_space",
    "model_error",
    "residuals",
    "resolve",
    "resolve_exact",
    "resolve_value",
    "space_on",
    "value_gradient",
]
