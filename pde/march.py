r"""The backward march of the value function and its exact transpose.

    u(t_k) = P_k clip(...), one propagator P_k for each layer, from u(T) = Phi back to u(0);
    J = sum_y <u_y(0), mu_y>;   rho(t_{k+1}) = P_k^T rho(t_k) from rho(0) = mu.

For every t, sum_y <u_y(t), rho_y(t)> = J. Columns of an array are the two classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kolmo.errors import MaximumPrincipleError, NonFiniteError
from kolmo.pde.csr import extremes
from kolmo.pde.space import Space, Steps

#: violation of the maximum principle, relative to max Phi - min Phi, above which a point is refused
VIOLATION_LIMIT = 0.05


@dataclass
class Trajectory:
    """What a backward march leaves behind: one state per substep, for the adjoint.

    states[k]: the inputs of layer k's substeps, latest time first, each (Q, C). records[k]: what the
    substeps' adjoints take, where they were asked for, else the same states.
    kept[k]: for each of them the entries the clip left alone (None: all of them).
    initial: u(0). violation: largest overshoot before clipping, relative to the range of Phi.
    """

    steps: list[Steps]
    states: list[list[np.ndarray]]
    kept: list[list[np.ndarray | None]]
    initial: np.ndarray
    violation: float = 0.0
    clipped: int = field(default=0)
    records: list[list[Any]] = field(default_factory=list)

    @property
    def substeps(self) -> int:
        """Total number of substeps."""
        return sum(s.count for s in self.steps)

    def value(self, layer: int) -> np.ndarray:
        """u at time layer * h, shape (Q, C); layer from 0 to L."""
        if layer == 0:
            return self.initial
        return self.states[layer - 1][0]


def backward(
    space: Space, steps: list[Steps], terminal: np.ndarray, limit: bool = True, record: bool = False
) -> Trajectory:
    """March u from the terminal values (Q, C) to time 0; `limit` clips it to their range per class.

    record: keep what the schemes need for the adjoint, up to four states a substep, in place of computing
    it again there.

    The clip keeps an optimiser from harvesting undershoots. Without it the march is linear
    and more accurate on coarse meshes (oscillations average out, clipped ones do not), so the
    difference of the two measures what the mesh does not resolve.

    Raises MaximumPrincipleError where u leaves the range by more than VIOLATION_LIMIT of it
    before the clip, and NonFiniteError, each with the layer.
    """
    upper = np.array([space.maximum(float(c.max())) for c in terminal.T])
    lower = np.array([-space.maximum(float(-c.min())) for c in terminal.T])
    width = max(float((upper - lower).max()), float(np.finfo(float).tiny))
    u, worst, clipped = terminal, 0.0, 0
    states: list[list[np.ndarray]] = [[] for _ in steps]
    kept: list[list[np.ndarray | None]] = [[] for _ in steps]
    records: list[list[Any]] = [[] for _ in steps]
    for layer in reversed(range(len(steps))):
        for _ in range(steps[layer].count):
            states[layer].append(u)
            if record:
                u, made = steps[layer].record(u)
                records[layer].append(made)
            else:
                records[layer].append(u)
                u = steps[layer].backward(u)
            top, bottom = extremes(u)
            beyond = max(float((top - upper).max()), float((lower - bottom).max()), 0.0)
            if not np.isfinite(top).all():
                beyond = np.inf
            # rounding is not a violation: the derivative is the unclipped one
            mask = None
            if limit and beyond > 1e-13 * width:
                mask = (u <= upper) & (u >= lower)
                clipped += int(mask.size - mask.sum())
                u = np.clip(u, lower, upper)
            kept[layer].append(mask)
            worst = max(worst, beyond / width)
        _check(space.maximum(worst), layer)
    return Trajectory(steps, states, kept, u, space.maximum(worst), clipped, records)


def _check(violation: float, layer: int) -> None:
    if not np.isfinite(violation):
        raise NonFiniteError(f"layer {layer}: the value function is not finite; take smaller weights", layer)
    if violation > VIOLATION_LIMIT:
        raise MaximumPrincipleError(
            f"layer {layer}: the value function overshoots its bounds by {violation:.0%} of their range: the "
            "mesh does not resolve these weights; take more cells, smaller weights or more layers",
            layer,
        )


def forward(
    trajectory: Trajectory, initial: np.ndarray, each: Callable[[int, np.ndarray], None]
) -> np.ndarray:
    """The density from rho(0) = initial (Q, C) to T, exact transpose of the march.

    `each(layer, rho)` is called with the density at every layer's start; returns rho(T).
    """
    rho = initial
    for layer, steps in enumerate(trajectory.steps):
        each(layer, rho)
        for mask in reversed(trajectory.kept[layer]):
            rho = steps.forward(rho if mask is None else rho * mask)
    return rho


def adjoint(
    trajectory: Trajectory, initial: np.ndarray, each: Callable[[int, np.ndarray], None], scale: float = 1.0
) -> np.ndarray:
    """Like `forward`, all times `scale`, but `each(layer, cotangent)` gets dJ/dK of every layer."""
    rho = scale * initial
    for layer, steps in enumerate(trajectory.steps):
        total: np.ndarray | None = None
        kept, records = trajectory.kept[layer], trajectory.records[layer]
        for mask, made in zip(reversed(kept), reversed(records), strict=True):
            rho, cotangent = steps.adjoint(rho if mask is None else rho * mask, made)
            total = cotangent if total is None else total + cotangent
        assert total is not None  # every layer has at least one substep
        each(layer, total)
    return rho
