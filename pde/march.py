r"""The backward march of the value function and its exact transpose.

    u(t_k) = P_k clip(...), one propagator P_k for each layer, from u(T) = Phi back to u(0);
    J = sum_y <u_y(0), mu_y>;   rho(t_{k+1}) = P_k^T rho(t_k) from rho(0) = mu.

For every t, sum_y <u_y(t), rho_y(t)> = J. Columns of an array are the two classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kolmo.errors import MaximumPrincipleError, NonFiniteError
from kolmo.pde import csr
from kolmo.pde.space import Space, Steps
from kolmo.profile import timed

#: (layer, array over nodes): what a march shows of each layer
EachLayer = Callable[[int, np.ndarray], None]

#: violation of the maximum principle, relative to max Phi - min Phi, above which a point is refused
VIOLATION_LIMIT = 0.05


@dataclass(kw_only=True)
class March:
    """A backward march, whatever it kept.

    initial: u(0), shape (Q, C). violation: largest overshoot before clipping, relative to the range of Phi.
    clipped: entries that the clip cut.
    """

    steps: Sequence[Steps]
    initial: np.ndarray
    violation: float = 0.0
    clipped: int = 0

    @property
    def substeps(self) -> int:
        """Total number of substeps."""
        return sum(s.count for s in self.steps)

    def passed(self, space: Space, layer: int, violation: float, clipped: int) -> None:
        """Count what a layer did; raises MaximumPrincipleError or NonFiniteError, see `backward`."""
        self.violation = space.maximum(max(self.violation, violation))
        self.clipped += clipped
        if not np.isfinite(self.violation):
            raise NonFiniteError(
                f"layer {layer}: the value function is not finite; take smaller weights", layer
            )
        if self.violation > VIOLATION_LIMIT:
            raise MaximumPrincipleError(
                f"layer {layer}: the value function overshoots its bounds by {self.violation:.0%} of their "
                "range: the mesh does not resolve these weights; take more cells, smaller weights or more "
                "layers",
                layer,
            )


@dataclass
class Layer:
    """What the march keeps of one layer's substeps, latest time first.

    states: their inputs, each (Q, C). kept: the entries of their results that the clip left alone (None:
    all of them). records: what their adjoints take, the states themselves unless more was asked for.
    """

    states: list[np.ndarray] = field(default_factory=list)
    kept: list[np.ndarray | None] = field(default_factory=list)
    records: list[Any] = field(default_factory=list)


@dataclass(kw_only=True)
class Trajectory(March):
    """What a backward march leaves behind of every layer k, see `Layer`: one state per substep.

    With records other than the states, these are kept of the layer's first substep only.
    """

    states: list[list[np.ndarray]]
    kept: list[list[np.ndarray | None]]
    records: list[list[Any]] = field(default_factory=list)

    def value(self, layer: int) -> np.ndarray:
        """u at time layer * h, shape (Q, C); layer from 0 to L."""
        if layer == 0:
            return self.initial
        return self.states[layer - 1][0]


@dataclass(frozen=True)
class Bounds:
    """The range of Phi in each class (C,), which u may not leave; limit: clip it there. width: the larger."""

    lower: np.ndarray
    upper: np.ndarray
    limit: bool
    width: float

    @classmethod
    def of(cls, space: Space, terminal: np.ndarray, limit: bool) -> Bounds:
        """Of the terminal values (Q, C), over all processes."""
        upper = np.array([space.maximum(float(c.max())) for c in terminal.T])
        lower = np.array([-space.maximum(float(-c.min())) for c in terminal.T])
        return cls(lower, upper, limit, max(float((upper - lower).max()), float(np.finfo(float).tiny)))

    def clip(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, int, float]:
        """u within the bounds, the entries left alone (None: all), the number of others, the relative
        overshoot."""
        beyond = csr.overshoot(u, self.lower, self.upper) / self.width
        # rounding is not a violation: the derivative is the unclipped one
        if not self.limit or beyond <= 1e-13:
            return u, None, 0, beyond
        inside, kept = np.empty_like(u), np.empty_like(u, dtype=bool)
        return inside, kept, csr.clip(u, self.lower, self.upper, inside, kept), beyond


@timed("march")
def backward(
    space: Space, steps: Sequence[Steps], terminal: np.ndarray, limit: bool = True, record: bool = False
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
    bounds, layers, u = Bounds.of(space, terminal, limit), [Layer() for _ in range(len(steps))], terminal
    trajectory = Trajectory(
        steps=steps,
        initial=terminal,
        states=[layer.states for layer in layers],
        kept=[layer.kept for layer in layers],
        records=[layer.records for layer in layers],
    )
    for k in reversed(range(len(steps))):
        u, violation, clipped = over_layer(steps[k], u, bounds, layers[k], record)
        trajectory.passed(space, k, violation, clipped)
    trajectory.initial = own(u)
    return trajectory


@timed("march")
def passing(
    space: Space, steps: Sequence[Steps], terminal: np.ndarray, limit: bool, each: EachLayer
) -> March:
    """As `backward`, but nothing is kept.

    each(layer, u): called with u (Q, C) at the start of every layer, the last layer first.
    """
    march, bounds, u = March(steps=steps, initial=terminal), Bounds.of(space, terminal, limit), terminal
    for k in reversed(range(len(steps))):
        u, violation, clipped = over_layer(steps[k], u, bounds)
        march.passed(space, k, violation, clipped)
        each(k, u)
    march.initial = own(u)
    return march


def over_layer(
    steps: Steps, u: np.ndarray, bounds: Bounds, into: Layer | None = None, record: bool = False
) -> tuple[np.ndarray, float, int]:
    """u (Q, C) one layer earlier, the largest relative overshoot, and the number of clipped entries.

    into: gets what the adjoint needs; record: see `backward`.
    """
    worst, clipped = 0.0, 0
    for _ in range(steps.count):
        if into is None:
            u = steps.backward(u)
        else:
            u = own(u)
            if not into.states or not record:
                into.states.append(u)
            u, made = steps.record(u) if record else (steps.backward(u), u)
            into.records.append(made)
        u, mask, outside, violation = bounds.clip(u)
        worst, clipped = max(worst, violation), clipped + outside
        if into is not None:
            into.kept.append(mask)
    return u, worst, clipped


def own(u: np.ndarray) -> np.ndarray:
    """u in memory of its own: a view would keep all of a scheme's stages alive with it."""
    whole = u.base is None or (isinstance(u.base, np.ndarray) and u.base.nbytes <= u.nbytes)
    return u if whole else u.copy(order="K")


def forward(trajectory: Trajectory, initial: np.ndarray, each: EachLayer) -> np.ndarray:
    """The density from rho(0) = initial (Q, C) to T, exact transpose of the march.

    `each(layer, rho)` is called with the density at every layer's start; returns rho(T).
    """
    rho = initial
    for layer, steps in enumerate(trajectory.steps):
        each(layer, rho)
        for mask in reversed(trajectory.kept[layer]):
            rho = steps.forward(rho if mask is None else rho * mask)
    return rho


@timed("adjoint march")
def adjoint(trajectory: Trajectory, initial: np.ndarray, each: EachLayer, scale: float = 1.0) -> np.ndarray:
    """Like `forward`, all times `scale`, but `each(layer, cotangent)` gets dJ/dK of every layer."""
    rho = scale * initial
    for k, steps in enumerate(trajectory.steps):
        rho, cotangent = adjoint_layer(steps, rho, trajectory.kept[k], trajectory.records[k])
        each(k, cotangent)
    return rho


def adjoint_layer(
    steps: Steps, rho: np.ndarray, kept: list[np.ndarray | None], records: list[Any]
) -> tuple[np.ndarray, np.ndarray]:
    """The density (Q, C) one layer later and dJ/dK of the layer; kept, records: see `Layer`."""
    total: np.ndarray | None = None
    for mask, made in zip(reversed(kept), reversed(records), strict=True):
        rho, cotangent = steps.adjoint(rho if mask is None else rho * mask, made)
        if total is None:
            total = cotangent
        else:
            total += cotangent
    assert total is not None  # every layer has at least one substep
    return rho, total
