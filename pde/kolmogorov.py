r"""The backward Kolmogorov equation of a training problem, differentiable in the weights.

    u_t + b . grad u + 1/2 a : hess u = 0 on [0, T),   u_y(., T) = Phi_y,
    J = sum_y <u_y(., 0), mu_y>                                    (MATHEMATICS section 3)

Network and mesh meet in the values of b and a at the coefficient points: torch evaluates and
differentiates those, `march` solves the equation and its exact discrete adjoint.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kolmo import memory
from kolmo.errors import InputError, PecletError
from kolmo.modified import Coefficients, check_order, modified_equation
from kolmo.network import LayeredNetwork
from kolmo.pde import march
from kolmo.pde.backend import make_space
from kolmo.pde.boundary import Taper
from kolmo.pde.checkpointed import Checkpointed, Plan, all_states, plan, record_size
from kolmo.pde.domain import choose_half_width
from kolmo.pde.guards import check_layer, check_roughness
from kolmo.pde.march import March, Trajectory
from kolmo.pde.mesh import DEFAULT_CELLS, check_dim
from kolmo.pde.propagator import PROPAGATORS, Propagator
from kolmo.pde.space import Space, Steps
from kolmo.problem import Problem
from kolmo.profile import section, timed
from kolmo.text import nearest

#: hidden values of one evaluation of the network: few enough layers at a time to stay in cache
_CACHE_VALUES = 150_000
#: hidden values kept for the gradient; above, layers are evaluated again in the backward pass
_STORED_VALUES = 8_000_000


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
        # components contiguous, as everything at the nodes
        self._points = torch.from_numpy(np.ascontiguousarray(space.coefficient_points.T)).T
        self.taper = Taper(space.coefficient_points, space.half_width, space.spacing)
        self.terminal = np.stack(
            [problem.loss(self._points, label).detach().numpy() for label in (0, 1)], axis=1
        )
        self.initial = initial_measure(space, problem)
        self.last: March | None = None
        """The latest backward march, for inspection (substeps, violation of the maximum principle); None
        after one that was refused."""

    @timed("coefficients")
    def coefficients(self, network: LayeredNetwork | None = None) -> Coefficients:
        """Tapered drift and diffusion at the nodes, for all layers, differentiable in the weights."""
        network = self.problem.network if network is None else network
        model = _CoefficientModel(network, self)
        if self.space.processes == 1:
            return Coefficients(*model(self._points))
        check = float(sum(p.detach().double().sum() for p in network.parameters()))
        if self.space.maximum(check) != -self.space.maximum(-check):
            raise InputError("network: the weights differ between processes; give the network a seed")
        shared = _SumGradients.apply(self.space, *network.parameters())
        names = [f"network.{name}" for name, _ in network.named_parameters()]
        parameters = dict(zip(names, shared, strict=True))
        return Coefficients(*torch.func.functional_call(model, parameters, (self._points,)))

    @timed("coefficients")
    def free_coefficients(self) -> Coefficients:
        """Drift and diffusion at the nodes before the taper, without derivatives (one process)."""
        with torch.no_grad():
            return Coefficients(*_CoefficientModel(self.problem.network, self, tapered=False)(self._points))

    def expected_loss(self, network: LayeredNetwork | None = None) -> Tensor:
        """J(theta), a float64 scalar; its backward() is the exact discrete adjoint.

        network: other weights than the problem's (same dimension and loss).
        Raises InfeasibleError (maximum principle, stiffness, non-finite values), and InputError where the
        budget is too small for the adjoint.
        """
        coefficients = self.coefficients(network)
        depth_step = (network or self.problem.network).step
        return _ExpectedLoss.apply(coefficients.drift, coefficients.diffusion, self, depth_step)

    @timed("assembly")
    def steps(self, drift: np.ndarray, diffusion: np.ndarray, step: float) -> list[Steps]:
        """The substeps of every layer for nodal coefficients (L, Q, d) and (L, Q, d[, d])."""
        return [
            self.propagator.on_layer(self.space, self.space.generator(drift[k], diffusion[k]), step, k)
            for k in range(len(drift))
        ]

    def march(self, drift: np.ndarray, diffusion: np.ndarray, step: float) -> tuple[float, Trajectory]:
        """J and the backward trajectory for nodal coefficients (L, Q, d) and (L, Q, d[, d]).

        It has the states of all substeps, whatever the budget. Raises InputError where memory does not hold
        them, and InfeasibleError.
        """
        self.last = None  # gives its memory back before more is taken
        steps = self.steps(drift, diffusion, step)
        substeps = sum(layer.count for layer in steps)
        needed = memory.states(len(self._points), substeps)
        memory.require(needed, f"cells: the states of {substeps} substeps", "take fewer cells or layers")
        trajectory = self._trajectory(steps, drift, diffusion)
        self.last = trajectory
        return self._value(trajectory), trajectory

    def march_within(
        self, drift: np.ndarray, diffusion: np.ndarray, step: float, adjoint: bool
    ) -> tuple[float, March]:
        """As `march`, within the budget: with all states where they fit, else with less.

        adjoint: the march will be differentiated; it is a `Checkpointed` one where the states do not fit.
        """
        self.last = None
        steps = self.steps(drift, diffusion, step)
        kept = self._plan(steps, adjoint)
        if kept is not None and kept.snapshots is None:
            trajectory = self._trajectory(steps, drift, diffusion, kept.record)
            self.last = replace(trajectory, records=[])  # those are the adjoint's, and go when it goes
            return self._value(trajectory), trajectory
        rough: list[PecletError] = []

        def look(layer: int, u: np.ndarray) -> None:
            try:
                if not rough:
                    check_layer(self.space, u, drift[layer], diffusion[layer], layer)
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

    def _trajectory(
        self, steps: list[Steps], drift: np.ndarray, diffusion: np.ndarray, record: bool = False
    ) -> Trajectory:
        trajectory = march.backward(self.space, steps, self.terminal, self.limit, record)
        with section("guards"):
            check_roughness(self.space, trajectory, drift, diffusion)
        return trajectory

    def _value(self, marched: March) -> float:
        return float(self.space.sum(np.array(np.vdot(marched.initial, self.initial))))

    def _plan(self, steps: list[Steps], adjoint: bool) -> Plan | None:
        """What a march keeps; None: nothing, where nothing is needed and the states do not fit."""
        # half: the derivatives by the coefficients take memory too
        budget = memory.available() // 2 if self.budget is None else self.budget
        counts = [layer.count for layer in steps]
        if not adjoint:
            return all_states(self.space, counts, self.terminal, budget)
        kind = type(steps[-1])
        if kind not in self._record_sizes:  # the scheme's and the mesh's, whatever the weights
            self._record_sizes[kind] = record_size(steps[-1], self.terminal)
        name = "cells" if self.budget is None else "budget"
        return plan(self.space, counts, self.terminal, self._record_sizes[kind], budget, name)

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


def initial_measure(space: Space, problem: Problem) -> np.ndarray:
    """mu as nodal masses (Q, 2): each point gives 1/M to its class, shared by its cell's nodes."""
    weights = space.interpolation(problem.data.points.numpy())
    labels = problem.data.labels.numpy()
    one_hot = np.stack([labels == 0, labels == 1], axis=1) / len(labels)
    return np.asarray(weights.T @ one_hot)


class _CoefficientModel(nn.Module):
    """Weights -> (b, a) at the nodes, layer ranges in turns where memory is short."""

    def __init__(self, network: LayeredNetwork, equation: BackwardKolmogorov, tapered: bool = True) -> None:
        super().__init__()
        self.network = network
        self._equation, self._tapered = equation, tapered

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        network = self.network
        count, width = max(1, len(points)), getattr(network, "width", 16)
        chunk = max(1, _CACHE_VALUES // (count * (2 * network.dim if network.compiled else width)))
        recompute = count * width * network.depth > _STORED_VALUES
        parts = []
        for k in range(0, network.depth, chunk):
            layers = slice(k, k + chunk)
            if recompute:
                parts.append(checkpoint(self._range, layers, points, use_reentrant=False))
            else:
                parts.append(self._range(layers, points))
        return _joined([p[0] for p in parts]), _joined([p[1] for p in parts])

    def _range(self, layers: slice, points: Tensor) -> tuple[Tensor, Tensor]:
        equation = self._equation
        noise = equation.problem.noise
        which = (equation.order, layers, equation.correction)
        found = modified_equation(self.network, noise, points, *which, fixed=True)
        if self._tapered:
            found = equation.taper(found)
        return found.drift, found.diffusion


def _joined(parts: list[Tensor]) -> Tensor:
    """Layers in one tensor (L, Q, ...), nodes contiguous as in its parts."""
    return parts[0] if len(parts) == 1 else torch.cat([p.movedim(1, -1) for p in parts]).movedim(-1, 1)


class _ExpectedLoss(torch.autograd.Function):
    """(b, a) -> J by the march; backward: the exact discrete adjoint."""

    @staticmethod
    def forward(
        ctx: Any, drift: Tensor, diffusion: Tensor, equation: BackwardKolmogorov, step: float
    ) -> Tensor:
        coefficients = drift.detach().numpy(), diffusion.detach().numpy()
        value, ctx.marched = equation.march_within(*coefficients, step, any(ctx.needs_input_grad))
        ctx.equation, ctx.shape = equation, diffusion.shape
        return drift.new_tensor(value)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor, None, None]:
        equation: BackwardKolmogorov = ctx.equation
        diagonal = len(ctx.shape) == 3
        layers, nodes, *components = ctx.shape
        d_drift = np.moveaxis(np.empty((layers, equation.space.dim, nodes)), -1, 1)
        d_diffusion = np.moveaxis(np.empty((layers, *components, nodes)), -1, 1)

        def collect(layer: int, cotangent: np.ndarray) -> None:
            with section("contraction"):
                d_drift[layer], d_diffusion[layer] = equation.space.pullback(cotangent, diagonal)

        if isinstance(ctx.marched, Checkpointed):
            ctx.marched.adjoint(equation.initial, collect, float(scale))
        else:
            march.adjoint(ctx.marched, equation.initial, collect, float(scale))
        return torch.from_numpy(d_drift), torch.from_numpy(d_diffusion), None, None


class _SumGradients(torch.autograd.Function):
    """Parameters held alike by every process; gradients are summed over processes."""

    @staticmethod
    def forward(ctx: Any, space: Space, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.space = space
        return tuple(p.view_as(p) for p in parameters)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(torch.from_numpy(ctx.space.sum(np.ascontiguousarray(g.numpy()))) for g in gradients))
