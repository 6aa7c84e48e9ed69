r"""The backward Kolmogorov equation of a training problem, differentiable in the weights.

    u_t + b . grad u + 1/2 a : hess u = 0 on [0, T),   u_y(., T) = Phi_y,
    J = sum_y <u_y(., 0), mu_y>                                    (MATHEMATICS section 3)

Network and mesh meet in the values of b and a at the coefficient points: torch evaluates and
differentiates those, `march` solves the equation and its exact discrete adjoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kolmo import memory
from kolmo.errors import InputError, PecletError
from kolmo.modified import Coefficients, check_order
from kolmo.network import LayeredNetwork
from kolmo.pde import march
from kolmo.pde.backend import make_space
from kolmo.pde.checkpointed import Checkpointed, Plan, all_records, all_states, plan, record_size
from kolmo.pde.coefficients import NodalCoefficients
from kolmo.pde.controlled import controlled_loss
from kolmo.pde.curvature import Curvature
from kolmo.pde.differentiable import CompiledLoss, ExpectedLoss
from kolmo.pde.domain import choose_half_width
from kolmo.pde.guards import At, check_layer, check_roughness
from kolmo.pde.march import March, Trajectory
from kolmo.pde.mesh import DEFAULT_CELLS, check_dim
from kolmo.pde.propagator import PROPAGATORS, Propagator
from kolmo.pde.recovery import Recovery
from kolmo.pde.space import LayerSteps, Space, Steps
from kolmo.problem import Problem
from kolmo.profile import section, timed
from kolmo.text import nearest


@dataclass(frozen=True)
class Solution:
    """Value function and density at every layer, on the nodes.

    times (L + 1,); points (Q, d); value and density (L + 1, Q, 2), columns are the classes
    0 and 1. `density` holds nodal masses (its sum over nodes is the class's share of the
    data); divide by `lumped_mass` (Q,) for a density per unit volume.
    """

    times: np.ndarray
    points: np.ndarray
    value: np.ndarray
    density: np.ndarray
    lumped_mass: np.ndarray

    @property
    def duality(self) -> np.ndarray:
        """sum_y <u_y(t), rho_y(t)> at every time, shape (L + 1,): constant, equal to J."""
        return np.einsum("tqc,tqc->t", self.value, self.density)


class BackwardKolmogorov:
    """The equation of one problem on one mesh.

    cells: intervals per direction (default 256, 96, 32 in 1, 2, 3-D). order: of the modified
    equation, 1 or 2. backend: 'auto', 'box', 'dolfinx' or 'skfem' (see `backend`). propagator: 'explicit',
    'implicit' or a Propagator. half_width: R of the box; by default chosen from the data and a
    pilot sample of the chain. space: a ready Space, in place of cells, backend and half_width.
    limit: clip u to [min Phi, max Phi] after every substep, as training needs. correction: share of order
    2's correction (see `modified_equation`). budget: bytes that a process may keep for the adjoint, in states
    of the value function and what belongs to them; where they are few it computes more again, see
    `checkpointed`. By default half of the available memory.

    Raises InputError on d > 3 or bad options, MissingBackendError on an absent backend; the
    methods raise InfeasibleError where the mesh cannot resolve the weights.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        cells: int | None = None,
        order: int = 2,
        backend: str = "auto",
        propagator: str | Propagator = "explicit",
        half_width: float | None = None,
        space: Space | None = None,
        limit: bool = True,
        correction: float = 1.0,
        budget: float | None = None,
    ) -> None:
        check_order(problem.network, order)
        dim = problem.network.dim
        check_dim(dim)
        if isinstance(propagator, str):
            if propagator not in PROPAGATORS:
                raise InputError(f"propagator: {propagator!r} is unknown{nearest(propagator, PROPAGATORS)}")
            propagator = PROPAGATORS[propagator]()
        if space is None:
            cells = DEFAULT_CELLS[dim] if cells is None else cells
            width = getattr(problem.network, "width", dim)
            needed = memory.equation(dim, cells, problem.network.depth, width)
            memory.require(needed, f"cells: the equation on {cells} cells in {dim}-D", "take fewer")
            half_width = choose_half_width(problem) if half_width is None else half_width
            with section("mesh"):
                space = make_space(backend, dim, cells, half_width)
        if space.dim != dim:
            raise InputError(f"space: {space.dim}-dimensional, the problem has {dim} features")
        self.problem, self.order, self.propagator, self.space = problem, order, propagator, space
        if budget is not None and not 0 < budget < float("inf"):
            raise InputError(f"budget: {budget!r} is not a positive number of bytes")
        self.limit, self.correction, self.budget = limit, correction, budget
        self._record_sizes: dict[type[Steps], int] = {}
        self.nodal = NodalCoefficients(space, problem.noise, order, correction)
        self.taper = self.nodal.taper
        self._terminal = self.terminal_losses().detach().numpy()
        self.initial = initial_measure(space, problem)
        self.last: March | None = None
        """The latest backward march, for inspection (substeps, violation of the maximum principle); None
        after one that was refused."""

    @property
    def terminal(self) -> np.ndarray:
        """Phi at the nodes (Q, 2), of a loss with controls at their present values."""
        return self.terminal_losses().detach().numpy() if self.problem.loss.controls else self._terminal

    def terminal_losses(self) -> Tensor:
        """Phi at the nodes (Q, 2), differentiable by the loss's controls."""
        return torch.stack([self.problem.loss(self.nodal.points, label) for label in (0, 1)], dim=1)

    @timed("coefficients")
    def coefficients(self, network: LayeredNetwork | None = None) -> Coefficients:
        """Tapered drift and diffusion at the nodes, for all layers, differentiable in the weights."""
        return self.nodal(self.problem.network if network is None else network)

    @timed("coefficients")
    def free_coefficients(self) -> Coefficients:
        """Drift and diffusion at the nodes before the taper, without derivatives (one process)."""
        return self.nodal.free(self.problem.network)

    def expected_loss(self, network: LayeredNetwork | None = None) -> Tensor:
        """J(theta), a float64 scalar; its backward() is the exact discrete adjoint.

        network: other weights than the problem's (same dimension and loss). Differentiable by what else is a
        control too: horizon, noise strengths, the loss's parameters.
        Raises InfeasibleError (maximum principle, stiffness, non-finite values), and InputError where the
        budget is too small for the adjoint.
        """
        network = self.problem.network if network is None else network
        weights = list(network.parameters())
        adjoint = torch.is_grad_enabled() and any(w.requires_grad for w in weights)
        if torch.is_grad_enabled() and (network.controls or self.problem.loss.controls):
            return controlled_loss(self, network)
        layers = self.nodal.layers(network, adjoint)
        if layers is not None:
            return CompiledLoss.apply(network.W, network.b, network.V, self, layers, network.step)
        coefficients = self.coefficients(network)
        return ExpectedLoss.apply(coefficients.drift, coefficients.diffusion, self, network.step)

    def point_gradients(self, network: LayeredNetwork | None = None) -> np.ndarray:
        """dJ/dx_i = grad u_{y_i}(x_i, 0) / M for every data point, shape (M, d), loss per length.

        What an adversary would follow, and how much each point's place matters. By splines through the nodal
        values: a uniform mesh and one process, else InputError. Raises InfeasibleError.
        """
        data, recovery = self.problem.data, Recovery(self.space)
        with torch.no_grad():
            self.expected_loss(network)
        assert self.last is not None
        slopes = recovery.slopes(self.last.initial, data.points.numpy())
        return np.asarray(slopes[np.arange(len(data)), data.labels.numpy()] / len(data))

    def curvature(self, network: LayeredNetwork | None = None, more: Sequence[Tensor] = ()) -> Curvature:
        """The Hessian of J at the network's weights, as products with vectors; see `Curvature`."""
        return Curvature(self, network, more)

    def steps(self, drift: np.ndarray, diffusion: np.ndarray, step: float) -> Sequence[Steps]:
        """The substeps of every layer for nodal coefficients (L, Q, d) and (L, Q, d[, d]).

        What the coefficients make impossible is raised when the layer is first asked for.
        """

        return self._steps(lambda layer: (drift[layer], diffusion[layer]), len(drift), step)

    def _steps(self, at: At, layers: int, step: float, kept: bool = True) -> Sequence[Steps]:
        def make(layer: int) -> Steps:
            coefficients = at(layer)
            with section("assembly"):
                generator = self.space.generator(*coefficients)
                return self.propagator.on_layer(self.space, generator, step, layer)

        return LayerSteps(layers, make, kept)

    def march(self, drift: np.ndarray, diffusion: np.ndarray, step: float) -> tuple[float, Trajectory]:
        """J and the backward trajectory for nodal coefficients (L, Q, d) and (L, Q, d[, d]).

        It has the states of all substeps, whatever the budget. Raises InputError where memory does not hold
        them, and InfeasibleError.
        """
        self.last = None  # gives its memory back before more is taken
        steps = self.steps(drift, diffusion, step)
        substeps = sum(layer.count for layer in steps)
        needed = memory.states(len(self.terminal), substeps)
        memory.require(needed, f"cells: the states of {substeps} substeps", "take fewer cells or layers")
        trajectory = self._trajectory(steps, lambda layer: (drift[layer], diffusion[layer]))
        self.last = trajectory
        return self._value(trajectory), trajectory

    def march_within(self, at: At, layers: int, step: float, adjoint: bool) -> tuple[float, March]:
        """As `march`, within the budget: with all states where they fit, else with less.

        at: gives a layer's coefficients. adjoint: the march will be differentiated; it is a `Checkpointed`
        one where the states do not fit.
        """
        self.last = None
        # a value asks for each layer once: then the next one takes its memory while that is in cache
        steps = self._steps(at, layers, step, adjoint)
        kept = self._plan(steps, adjoint)
        if kept is not None and kept.snapshots is None:
            trajectory = self._trajectory(steps, at, kept.record)
            self.last = replace(trajectory, records=[])  # those are the adjoint's, and go when it goes
            return self._value(trajectory), trajectory
        rough: list[PecletError] = []

        def look(layer: int, u: np.ndarray) -> None:
            try:
                if not rough:
                    check_layer(self.space, u, at, layer)
            except PecletError as error:  # the march's own guards come first
                rough.append(error)

        marched: March
        if kept is None:
            marched = march.passing(self.space, steps, self.terminal, self.limit, look)
        else:
            marched = Checkpointed(self.space, steps, self.terminal, kept, self.limit, look)
        if rough:
            raise rough[0]
        self.last = marched
        return self._value(marched), marched

    def _trajectory(self, steps: Sequence[Steps], at: At, record: bool = False) -> Trajectory:
        trajectory = march.backward(self.space, steps, self.terminal, self.limit, record)
        with section("guards"):
            check_roughness(self.space, trajectory, at)
        return trajectory

    def _value(self, marched: March) -> float:
        return float(self.space.sum(np.array(np.vdot(marched.initial, self.initial))))

    def _plan(self, steps: Sequence[Steps], adjoint: bool) -> Plan | None:
        """What a march keeps; None: nothing, where nothing is needed and the states do not fit."""
        # half: the derivatives by the coefficients take memory too
        budget = memory.lately_available() // 2 if self.budget is None else self.budget
        most = [self.propagator.most(self.space.dim)] * len(steps)
        if not adjoint:
            kept = all_states(self.space, most, self.terminal, budget)
            return kept or all_states(self.space, _counts(steps), self.terminal, budget)
        kind = type(steps[-1])
        if kind not in self._record_sizes:  # the scheme's and the mesh's, whatever the weights
            self._record_sizes[kind] = record_size(steps[-1], self.terminal)
        size = self._record_sizes[kind]
        # where there is room for the most substeps, layers need not be assembled to count them
        kept = all_records(self.space, most, self.terminal, size, budget)
        if kept is not None:
            return kept
        name = "cells" if self.budget is None else "budget"
        return plan(self.space, _counts(steps), self.terminal, size, budget, name)

    def solve(self, network: LayeredNetwork | None = None) -> Solution:
        """Value function and density at all layers (one process)."""
        network = self.problem.network if network is None else network
        with torch.no_grad():
            coefficients = self.coefficients(network)
        _, trajectory = self.march(coefficients.drift.numpy(), coefficients.diffusion.numpy(), network.step)
        densities: list[np.ndarray] = []
        densities.append(march.forward(trajectory, self.initial, lambda _, rho: densities.append(rho)))
        return Solution(
            times=network.step * np.arange(network.depth + 1),
            points=self.space.coefficient_points,
            value=np.stack([trajectory.value(k) for k in range(network.depth + 1)]),
            density=np.stack(densities),
            lumped_mass=self.space.lumped_mass,
        )


def _counts(steps: Sequence[Steps]) -> list[int]:
    return [layer.count for layer in steps]


def initial_measure(space: Space, problem: Problem) -> np.ndarray:
    """mu as nodal masses (Q, 2): each point gives 1/M to its class, shared by its cell's nodes."""
    weights = space.interpolation(problem.data.points.numpy())
    labels = problem.data.labels.numpy()
    one_hot = np.stack([labels == 0, labels == 1], axis=1) / len(labels)
    return np.asarray(weights.T @ one_hot)
