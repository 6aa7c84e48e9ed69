r"""Numbers that tell whether a mesh can follow a layer, and the guard on what it leaves unresolved.

Courant: h max_r sum_s |K_rs| / Ml_r, what the explicit propagator takes its substeps from (and refuses
beyond its cap). Peclet: |b| dx / (n . a n), n = b/|b|: above 2 the diffusion does not damp what varies from
node to node. That alone is no fault, transport without any diffusion is solved to second order; it is one
where the value function does vary from node to node, which consistent mass carries along for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kolmo.errors import PecletError
from kolmo.pde.march import Trajectory
from kolmo.pde.space import Space

#: share of the value function's variation that may be at the scale of the mesh
ROUGHNESS_LIMIT = 0.2


#: a layer's drift (Q, d) and diffusion (Q, d[, d]) by its number
At = Callable[[int], tuple[np.ndarray, np.ndarray]]


def check_roughness(space: Space, trajectory: Trajectory, at: At) -> None:
    """Raise PecletError that names the first layer, from the output on, that leaves u too rough."""
    for layer in reversed(range(len(trajectory.steps))):
        check_layer(space, trajectory.value(layer), at, layer)


def check_layer(space: Space, u: np.ndarray, at: At, layer: int) -> None:
    """Raise PecletError where u (Q, C), which a layer with these coefficients left, is too rough."""
    found = space.roughness(u)
    if found > ROUGHNESS_LIMIT:
        number = peclet(space, *at(layer))
        raise PecletError(
            f"layer {layer}: {found:.0%} of the value function's variation is at the scale of the "
            f"mesh, and at a mesh Peclet number of {number:.3g} nothing damps it; take more cells, "
            "smaller weights or more noise",
            layer,
        )


def peclet(space: Space, drift: np.ndarray, diffusion: np.ndarray) -> float:
    """The median mesh Peclet number of a layer over the nodes, infinite without diffusion."""
    speed = np.linalg.norm(drift, axis=1)
    along = np.einsum("qi,qi->q", drift**2, diffusion) if diffusion.ndim == 2 else None
    if along is None:
        along = np.einsum("qi,qij,qj->q", drift, diffusion, drift)
    moving = speed > 0
    if not moving.any():
        return 0.0
    with np.errstate(divide="ignore"):
        return float(np.median(space.spacing * speed[moving] ** 3 / np.maximum(along[moving], 0)))


def courant(space: Space, drift: np.ndarray, diffusion: np.ndarray, step: float) -> float:
    """The Courant number of a layer, diffusion included: h max_r sum_s |K_rs| / Ml_r."""
    return space.maximum(space.generator(drift, diffusion).rate()) * step


@dataclass(frozen=True)
class LayerNumbers:
    """Courant and median mesh Peclet number of every layer (L,)."""

    courant: np.ndarray
    peclet: np.ndarray


def layer_numbers(space: Space, drift: np.ndarray, diffusion: np.ndarray, step: float) -> LayerNumbers:
    """The numbers of nodal coefficients (L, Q, d) and (L, Q, d[, d]); step: of a layer, in units of time."""
    both = [(courant(space, b, a, step), peclet(space, b, a)) for b, a in zip(drift, diffusion, strict=True)]
    return LayerNumbers(*np.array(both).T)
