r"""What J by the Kolmogorov equation is off by: residuals weighted with the adjoint density.

With e = u - u_h at the nodes, A the mesh's own generator and L the true one, e obeys
-e_t = A e + (L u - A u), e(T) = 0, so that with the discrete density rho of the forward march, exactly,

    <mu, e(0)> = int_0^T <rho(t), (L - A) u(., t)> dt.

The unknown u is replaced by a quintic spline through u_h (`recovery`). To this mesh term belong the P1
interpolation of u(., 0) at the data; alike, the time term weighs each substep's leading local error and
the domain term what the taper takes from the coefficients, (L_free - L_tapered) u. Signed: J = J_h + sum.
Source: Becker, Rannacher, Acta Numerica 10 (2001); Pierce, Giles, SIAM Review 42 (2000).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kolmo.modified import Coefficients
from kolmo.pde.boundary import START
from kolmo.pde.guards import check_roughness
from kolmo.pde.kolmogorov import BackwardKolmogorov
from kolmo.pde.march import Trajectory, backward
from kolmo.pde.recovery import Recovery
from kolmo.pde.space import Steps
from kolmo.profile import timed


@dataclass(frozen=True)
class Residuals:
    """Signed leading errors of J by source: the equation's J is about value + mesh + time + domain.

    value: J of the linear (unclipped) march. interpolation: the part of `mesh` that comes from the data
    lying between nodes. size: the mesh residuals with their signs taken away, summed over nodes and time;
    where it is not small beside J the mesh resolves the value function only on average, and `mesh` is
    no longer its leading error. layers: the mesh term of each layer (L,). exit_probability: that a
    path of the equation reaches the taper.
    """

    value: float
    mesh: float
    time: float
    domain: float
    interpolation: float
    size: float
    layers: np.ndarray
    exit_probability: float

    @property
    def corrected(self) -> float:
        """J without the leading error of mesh and time, at least two orders more accurate where resolved."""
        return self.value + self.mesh + self.time


@dataclass(frozen=True)
class Marched:
    """One linear march and what it was made of."""

    equation: BackwardKolmogorov
    value: float
    trajectory: Trajectory
    free: Coefficients
    tapered: Coefficients
    recovery: Recovery


@timed("residuals")
def linear_march(equation: BackwardKolmogorov) -> Marched:
    """The march of `equation` without the clip. Raises InfeasibleError where it is refused, and
    InputError on a mesh whose residuals cannot be had (see `Recovery`)."""
    recovery = Recovery(equation.space)
    free = equation.free_coefficients()
    tapered = equation.taper(free)
    steps = equation.steps(tapered.drift.numpy(), tapered.diffusion.numpy(), equation.problem.network.step)
    trajectory = backward(equation.space, steps, equation.terminal, limit=False)
    check_roughness(equation.space, trajectory, tapered.at)
    value = float(np.vdot(trajectory.initial, equation.initial))
    return Marched(equation, value, trajectory, free, tapered, recovery)


@timed("residuals")
def residuals(marched: Marched) -> Residuals:
    """The weighted residuals of a march: about as dear as the march itself."""
    equation, trajectory, recovery = marched.equation, marched.trajectory, marched.recovery
    h, depth = equation.problem.network.step, equation.problem.network.depth
    layers, time, domain, size = np.zeros(depth), 0.0, 0.0, 0.0
    rho = equation.initial
    for k, steps in enumerate(trajectory.steps):
        b, a = marched.tapered.drift[k].numpy(), marched.tapered.diffusion[k].numpy()
        lost_b, lost_a = marched.free.drift[k].numpy() - b, marched.free.diffusion[k].numpy() - a
        for end in (0, 1):  # the trapezoidal rule over the layer
            u = trajectory.value(k + end)
            mesh = recovery.generator(u, b, a) - steps.derivative(u)
            layers[k] += h / 2 * np.vdot(rho, mesh)
            size += h / 2 * float(np.abs(rho * mesh).sum())
            domain += h / 2 * float(np.vdot(rho, recovery.generator(u, lost_b, lost_a)))
            if end == 0:
                # one substep stands for the layer's: they see the same coefficients
                time += steps.count * float(np.vdot(rho, steps.defect(trajectory.states[k][-1])))
                for _ in range(steps.count):
                    rho = steps.forward(rho)
    at_data = _at_data(marched) - marched.value
    mesh_term = float(layers.sum()) + at_data
    probability = _exit_probability(marched.equation, trajectory.steps)
    return Residuals(marched.value, mesh_term, time, domain, at_data, size, layers, probability)


def _at_data(marched: Marched) -> float:
    """J with u(., 0) taken from the spline at the data."""
    data = marched.equation.problem.data
    u = marched.recovery.at(marched.trajectory.initial, data.points.numpy())
    return float(u[np.arange(len(u)), data.labels.numpy()].mean())


def _exit_probability(equation: BackwardKolmogorov, steps: Sequence[Steps]) -> float:
    """The probability that a path of the equation reaches the taper before T: one more backward march.

    q = 1 on the taper's nodes at every substep, q(., T) = 0 elsewhere, kept in [0, 1].
    """
    zone = (np.abs(equation.space.coefficient_points) >= START * equation.space.half_width).any(axis=1)
    q = np.where(zone, 1.0, 0.0)[:, None]
    for layer in reversed(steps):
        for _ in range(layer.count):
            q = layer.backward(q).clip(0, 1)
            q[zone] = 1
    return float(equation.initial.sum(axis=1) @ q[:, 0])
