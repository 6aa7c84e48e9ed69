r"""Second derivatives of the expected loss by its weights: the second-order adjoint, exact on the mesh.

With J(theta) = <P_0 ... P_{L-1} Phi, mu>, P_k the propagator of K(b_k, a_k), a direction v and dots for
derivatives along it,

    tangent:               u'_k = P_k u'_{k+1} + P'_k u_{k+1},              u'_L = Phi',
    adjoint of the tangent: rho'_{k+1} = P_k^T rho'_k + P'_k^T rho_k,        rho'_0 = 0,
    d/dK:                   (dJ/dK_k)' from (rho', u) and (rho, u'),
    H v = (d(b, a, Phi)/dtheta)^T (dJ/d(b, a, Phi))' + [d^2(b, a, Phi)/dtheta^2 v]^T dJ/d(b, a, Phi),

the last term by torch; dJ/dPhi = rho_L. States, densities and their stages are computed once; a product then
costs two linear marches and two passes through the network. What the clip cuts, and the substeps, are held:
both are constant but for single points. Source: Wang, Navon, Le Dimet, Zou, Meteorol. Atmos. Phys. 50 (1992),
for the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kolmo.errors import InputError
from kolmo.modified import modified_equation
from kolmo.network import LayeredNetwork
from kolmo.pde.controlled import controlled_coefficients
from kolmo.pde.propagator import ExplicitSteps

if TYPE_CHECKING:
    from kolmo.pde.kolmogorov import BackwardKolmogorov


@dataclass
class _Substep:
    """Stages w_n, ..., w_0 and weights p_1, ..., p_n of one substep, and what the clip left alone of w_0."""

    stages: list[np.ndarray]
    weights: list[np.ndarray]
    kept: np.ndarray | None

    def masked(self, u: np.ndarray) -> np.ndarray:
        return u if self.kept is None else u * self.kept


class Curvature:
    """The Hessian of J at a network's present weights, as products with vectors.

    network: of the equation's dimension, by default the problem's. Vectors have its weights in the order of
    `torch.nn.utils.parameters_to_vector`, and behind them `more` tensors that J depends on and that require
    gradients, such as the problem's `controls`.

    value: J; gradient: dJ/dtheta; products: how many were computed.
    Raises InputError where the propagator is not explicit, there are several processes, or values that depend
    on controls of the loss are clipped; and InfeasibleError where the equation refuses the weights.
    """

    def __init__(
        self,
        equation: BackwardKolmogorov,
        network: LayeredNetwork | None = None,
        more: Sequence[Tensor] = (),
    ) -> None:
        if equation.space.processes > 1:
            raise InputError("curvature: second derivatives are for one process")
        self._equation = equation
        network = equation.problem.network if network is None else network
        self._parameters = [*(p for p in network.parameters() if p.requires_grad), *more]
        points, which = equation.nodal.points, (equation.order, slice(None), equation.correction)
        free = modified_equation(network, equation.problem.noise, points, *which)
        tapered = equation.taper.by_torch(free)
        self._outputs = controlled_coefficients(equation, tapered, network)
        coefficients = [c.detach().numpy() for c in self._outputs[:2]]
        self.value, trajectory = equation.march(coefficients[0], coefficients[1], network.step)
        if trajectory.clipped and self._outputs[2].requires_grad:
            raise InputError("curvature: the clip moves with the loss's controls; take limit=False")
        self._steps: list[ExplicitSteps] = []
        for steps in trajectory.steps:
            if not isinstance(steps, ExplicitSteps):
                raise InputError("curvature: second derivatives need propagator='explicit'")
            self._steps.append(steps)
        self._substeps: list[list[_Substep]] = []
        first = [np.empty_like(c.detach().numpy()) for c in self._outputs]
        rho = equation.initial
        for k, steps in enumerate(self._steps):
            found = []
            rows = zip(reversed(trajectory.states[k]), reversed(trajectory.kept[k]), strict=True)
            cotangent: np.ndarray | None = None
            for state, kept in rows:
                rho, weights = steps.dual_stages(rho if kept is None else rho * kept)
                stages = steps.stages(state)
                part = steps.cotangent(weights, stages)
                cotangent = part if cotangent is None else cotangent + part
                found.append(_Substep(stages, weights, kept))
            self._substeps.append(found)
            first[0][k], first[1][k] = equation.space.pullback(cotangent, self._diagonal)  # type: ignore[arg-type]
        first[2][:] = rho
        # one graph for all products: the gradient of <outputs, pull>, differentiable by weights and pull
        self._moving = [k for k, output in enumerate(self._outputs) if output.requires_grad]
        self._pull = [torch.from_numpy(c).requires_grad_() for c in first]
        self._pulled = self._gradient(self._pull, create_graph=True)
        self.gradient: np.ndarray = self._pulled.detach().numpy().copy()
        self.products = 0

    @property
    def size(self) -> int:
        """The number of weights."""
        return len(self.gradient)

    @property
    def _diagonal(self) -> bool:
        return self._outputs[1].ndim == 3

    def product(self, direction: np.ndarray) -> np.ndarray:
        """H v for a vector v of weights."""
        direction = np.asarray(direction, dtype=np.float64)
        if direction.shape != (self.size,):
            raise InputError(f"direction: shape {direction.shape}, the network has {self.size} weights")
        self.products += 1
        v = torch.from_numpy(direction)
        # <pulled, v> is linear in the pull: its derivative by it is that of the outputs along v
        *tangents, by_weights = _split(
            torch.autograd.grad(
                self._pulled @ v,
                [*self._pull, *self._parameters],
                retain_graph=True,
                materialize_grads=True,
            )
        )
        # torch up to 2.6 at least lets the zeros it materialises require gradients
        changes = self._along([t.detach().numpy() for t in tangents])
        pulled = self._gradient([torch.from_numpy(c) for c in changes])
        return np.asarray((pulled + by_weights).detach().numpy())

    def _gradient(self, pull: list[Tensor], create_graph: bool = False) -> Tensor:
        """The gradient of <outputs, pull> by the weights, in one vector."""
        found = torch.autograd.grad(
            [self._outputs[k] for k in self._moving],
            self._parameters,
            [pull[k] for k in self._moving],
            retain_graph=True,
            create_graph=create_graph,
            materialize_grads=True,
        )
        return torch.cat([p.reshape(-1) for p in found])

    def _along(self, tangents: list[np.ndarray]) -> list[np.ndarray]:
        """(dJ/d(b, a, Phi))' where drift, diffusion and terminal values change by the tangents."""
        space = self._equation.space
        dK = [space.generator(db, da) for db, da in zip(*tangents[:2], strict=True)]
        du = tangents[2]
        marched: list[list[list[np.ndarray]]] = [[] for _ in self._steps]
        for k in reversed(range(len(self._steps))):
            for substep in reversed(self._substeps[k]):
                stages = self._steps[k].stages_tangent(substep.stages, du, dK[k])
                du = substep.masked(stages[-1])
                marched[k].append(stages)
        found = [np.empty_like(t) for t in tangents]
        drho = np.zeros_like(self._equation.initial)
        for k, steps in enumerate(self._steps):
            total: np.ndarray | None = None
            for substep, stages in zip(self._substeps[k], reversed(marched[k]), strict=True):
                drho, weights = steps.dual_stages_tangent(substep.weights, substep.masked(drho), dK[k])
                part = steps.cotangent(weights, substep.stages) + steps.cotangent(substep.weights, stages)
                total = part if total is None else total + part
            assert total is not None  # every layer has at least one substep
            found[0][k], found[1][k] = space.pullback(total, self._diagonal)
        found[2][:] = drho
        return found


def _split(parts: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The derivatives by the pull, and those by the weights in one vector."""
    drift, diffusion, terminal, *others = parts
    return drift, diffusion, terminal, torch.cat([p.reshape(-1) for p in others])
