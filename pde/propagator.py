r"""One layer of time stepping: fixed maps of K with exact transposes.

The value function marches backward over a layer, u(t) = exp((s - t) M^-1 K) u(s); each
propagator is one rational or polynomial map of K, so its transpose (the density's forward
step) and its derivative by K are exact to rounding.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Any

import numpy as np

from kolmo.errors import ConditionError, InputError, StiffnessError
from kolmo.pde.space import Generator, ShiftedSolver, Space, Steps
from kolmo.profile import section


class Propagator(ABC):
    """A scheme; `on_layer` prepares it for one generator and one layer's length in time."""

    #: order in the time step, asserted by the tests
    order: int

    @abstractmethod
    def most(self, dim: int) -> int:
        """Substeps that no layer exceeds, in d dimensions."""

    @abstractmethod
    def on_layer(self, space: Space, generator: Generator, step: float, layer: int) -> Steps:
        """The substeps of one layer. Raises StiffnessError where the scheme would need too many."""


#: bound on the substep's rate dt max_r sum_s |K_rs| / Ml_r for k = 0, 1, 2, 3 corrections, found in 2-D
_RATE_LIMIT = (2.0, 1.5, 1.2, 1.0)
#: share of that bound up to which three Taylor terms do: they are stable on the imaginary axis too there
#: (below sqrt 3), and the term that they leave out, z^4 / 24, is below that of four at the bound, z^5 / 120
_THIRD_DEGREE = 0.6


@lru_cache
def _rate_limit(corrections: int, dim: int) -> float:
    """The bound in d dimensions.

    The corrections multiply the spectrum of Ml^-1 K by up to sum_{j<=k} lambda^j, lambda = (d+1)/(d+2)
    the largest eigenvalue of I - Ml^-1 M on simplices; stability asks for the product.
    """

    def growth(d: int) -> float:
        return float(sum(((d + 1) / (d + 2)) ** j for j in range(corrections + 1)))

    return _RATE_LIMIT[corrections] * growth(2) / growth(dim)


class Explicit(Propagator):
    r"""Taylor polynomials of exp(dt M^-1 K), the mass inverted by a lumped mass and k Neumann corrections.

        M_k^-1 = sum_{j<=k} (I - Ml^-1 M)^j Ml^-1

    is symmetric, exact to order h^{2k+2} on smooth modes, and costs k sparse products: no
    solves. corrections: k in 0..3. cap: most substeps a layer may need before it is refused,
    by default 512 in 1-D, where they cost nothing, and 64 otherwise. substeps: a fixed number.
    degree: of the polynomial, 3 or 4; by default 3 in layers whose substeps are short enough, see
    `_THIRD_DEGREE`, else, and with fixed substeps, 4, which has the order below.
    """

    order = 4

    def __init__(
        self,
        corrections: int = 2,
        cap: int | None = None,
        substeps: int | None = None,
        degree: int | None = None,
    ) -> None:
        if corrections not in range(len(_RATE_LIMIT)):
            raise InputError(f"corrections: {corrections!r} is not 0, 1, 2 or 3")
        if degree not in (None, 3, 4):
            raise InputError(f"degree: {degree!r} is not 3 or 4")
        self.corrections, self.cap, self.substeps, self.degree = corrections, cap, substeps, degree

    def most(self, dim: int) -> int:
        return self._cap(dim) if self.substeps is None else self.substeps

    def _cap(self, dim: int) -> int:
        return (512 if dim == 1 else 64) if self.cap is None else self.cap

    def on_layer(self, space: Space, generator: Generator, step: float, layer: int) -> Steps:
        limit = _rate_limit(self.corrections, space.dim)
        rate = space.maximum(generator.rate()) * step
        cap = self._cap(space.dim)
        if not rate / limit <= cap:
            raise StiffnessError(
                f"layer {layer}: the explicit step would need {np.ceil(rate / limit):.3g} substeps, at most "
                f"{cap} are allowed; take smaller weights or less noise, fewer cells, or "
                "propagator='implicit'",
                layer,
            )
        count = max(1, math.ceil(rate / limit)) if self.substeps is None else self.substeps
        scheme = (step / count, count, self.corrections, self._degree(rate / count, limit))
        return generator.explicit(*scheme) or ExplicitSteps(space, generator, *scheme)

    def _degree(self, rate: float, limit: float) -> int:
        if self.degree is not None:
            return self.degree
        return 3 if self.substeps is None and rate <= _THIRD_DEGREE * limit else 4


class ExplicitSteps(Steps):
    """The substeps of `Explicit`, by products with K and the mass."""

    def __init__(
        self, space: Space, generator: Generator, dt: float, count: int, corrections: int, degree: int = 4
    ) -> None:
        self.count, self.degree = count, degree
        self._space, self._generator, self._dt, self._corrections = space, generator, dt, corrections

    def _solve_mass(self, v: np.ndarray) -> np.ndarray:
        """M_k^-1 v, by Horner's rule in I - Ml^-1 M."""
        first = v / self._space.lumped_mass[:, None]
        result = first
        for _ in range(self._corrections):
            result = first + self._space.mass_defect(result)
        return result

    def stages(self, u: np.ndarray) -> list[np.ndarray]:
        """w_n = u, w_{j-1} = u + dt/j M_k^-1 K w_j for the degree n; the new state is w_0."""
        stages = [u]
        for j in range(self.degree, 0, -1):
            stages.append(u + self._solve_mass(self._generator.apply(stages[-1])) * (self._dt / j))
        return stages

    def backward(self, u: np.ndarray) -> np.ndarray:
        return self.stages(u)[-1]

    def derivative(self, u: np.ndarray) -> np.ndarray:
        return self._solve_mass(self._generator.apply(u))

    def defect(self, u: np.ndarray) -> np.ndarray:
        for j in range(1, self.degree + 2):  # the first term that the polynomial leaves out
            u = self.derivative(u) * (self._dt / j)
        return u

    def forward(self, rho: np.ndarray) -> np.ndarray:
        result, stage = rho, rho
        for j in range(1, self.degree + 1):
            stage = self._generator.transpose(self._solve_mass(stage)) * (self._dt / j)
            result = result + stage
        return result

    def adjoint(self, rho: np.ndarray, record: Any) -> tuple[np.ndarray, np.ndarray]:
        result, weights = self.dual_stages(rho)
        return result, self.cotangent(weights, self.stages(record))

    def dual_stages(self, rho: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """`forward(rho)`, and p_1, ..., p_n: y_0 = rho, p_j = dt/j M_k^-1 y_{j-1}, y_j = K^T p_j."""
        result, stage, weights = rho, rho, []
        for j in range(1, self.degree + 1):
            weights.append(self._solve_mass(stage) * (self._dt / j))
            stage = self._generator.transpose(weights[-1])
            result = result + stage
        return result, weights

    def cotangent(self, weights: list[np.ndarray], stages: list[np.ndarray]) -> np.ndarray:
        """sum_j p_j w_j^T on K's entries, for weights p_1, ..., p_n and stages w_n, ..., w_0."""
        return self._generator.sensitivity(np.hstack(weights), np.hstack(stages[-2::-1]))

    def stages_tangent(self, stages: list[np.ndarray], du: np.ndarray, dK: Generator) -> list[np.ndarray]:
        """Derivatives of the stages w_n, ..., w_0 where u changes by du and K by dK."""
        found = [du]
        for j, w in zip(range(self.degree, 0, -1), stages, strict=False):
            change = self._generator.apply(found[-1]) + dK.apply(w)
            found.append(du + self._solve_mass(change) * (self._dt / j))
        return found

    def dual_stages_tangent(
        self, weights: list[np.ndarray], drho: np.ndarray, dK: Generator
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Derivatives of what `dual_stages` gives, where rho changes by drho and K by dK."""
        result, stage, found = drho, drho, []
        for j, p in enumerate(weights, start=1):
            found.append(self._solve_mass(stage) * (self._dt / j))
            stage = self._generator.transpose(found[-1]) + dK.transpose(p)
            result = result + stage
        return result, found


#: condition number of an implicit step's matrix, scaled by the lumped mass, beyond which it is refused
_CONDITION_LIMIT = 1e10


class Implicit(Propagator):
    r"""TR-BDF2, gamma = 2 - sqrt 2, consistent mass, one factorisation of M - alpha K per layer.

        (M - alpha K) u* = (M + alpha K) u,      alpha = gamma dt / 2,
        (M - alpha K) u' = M (e1 u* - e0 u),     e1 = 1 / (gamma (2 - gamma)), e0 = e1 (1 - gamma)^2.

    For stiff cases and as cross-check. L-stability does not bound u, and far beyond its accuracy it
    damps u to a constant, which an optimiser would take for a small loss: hence the cap.
    Source: Bank et al., IEEE Trans. Electron Devices 32 (1985).
    substeps: per layer. cap: largest rate max_r sum_s |K_rs| / Ml_r times the substep.
    """

    order = 2

    def __init__(self, substeps: int = 2, cap: float = 1e4) -> None:
        if int(substeps) != substeps or substeps < 1:
            raise InputError(f"substeps: {substeps!r} is not a positive integer")
        self.substeps, self.cap = int(substeps), cap

    def most(self, dim: int) -> int:
        return self.substeps

    def on_layer(self, space: Space, generator: Generator, step: float, layer: int) -> Steps:
        dt = step / self.substeps
        rate = space.maximum(generator.rate()) * dt
        if not rate <= self.cap:
            raise StiffnessError(
                f"layer {layer}: the implicit step's rate {rate:.3g} exceeds {self.cap:.3g}, beyond which it "
                "follows nothing; take smaller weights or more substeps",
                layer,
            )
        steps = _ImplicitSteps(space, generator, dt, self.substeps)
        condition = steps.condition(rate)
        if not condition <= _CONDITION_LIMIT:
            raise ConditionError(
                f"layer {layer}: the implicit step's matrix has a condition number of about {condition:.1g}, "
                f"above {_CONDITION_LIMIT:.0g}; take more substeps, smaller weights or propagator='explicit'",
                layer,
            )
        return steps


class _ImplicitSteps(Steps):
    _gamma = 2 - math.sqrt(2)
    _e1 = 1 / (_gamma * (2 - _gamma))
    _e0 = _e1 * (1 - _gamma) ** 2
    #: exp(z) - R(z) = _error z^3 + O(z^4), R the scheme's stability function
    _error = -(3 * _gamma**2 - 4 * _gamma + 2) / (12 * (2 - _gamma))

    def __init__(self, space: Space, generator: Generator, dt: float, count: int) -> None:
        self.count = count
        self._space, self._generator = space, generator
        self._dt, self._alpha = dt, self._gamma * dt / 2
        with section("factorisation"):
            self._solver = generator.shifted(self._alpha)
        self._mass: ShiftedSolver | None = None

    def condition(self, rate: float) -> float:
        """About the condition number, in the maximum norm, of 1 - alpha Ml^-1 K on smooth and rough vectors.

        The norm of the inverse is a lower bound by two steps of Hager's idea: from signs, along its largest.
        """
        signs = np.where(np.random.default_rng(0).random(len(self._space.lumped_mass)) < 0.5, -1.0, 1.0)
        right = np.stack([signs, np.ones_like(signs)], axis=1)
        inverse = 0.0
        for _ in range(2):
            left = self._solver.solve(self._space.lumped_mass[:, None] * right)
            inverse = max(inverse, self._space.maximum(float(np.abs(left).max())))
            right = np.sign(self._solver.solve_transpose(np.sign(left)))
        return (1 + rate * self._gamma / 2) * inverse

    def _stages(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        middle = self._solver.solve(self._space.mass(u) + self._alpha * self._generator.apply(u))
        return middle, self._solver.solve(self._space.mass(self._e1 * middle - self._e0 * u))

    def backward(self, u: np.ndarray) -> np.ndarray:
        return self._stages(u)[1]

    def derivative(self, u: np.ndarray) -> np.ndarray:
        if self._mass is None:
            self._mass = self._generator.shifted(0.0)
        return self._mass.solve(self._generator.apply(u))

    def defect(self, u: np.ndarray) -> np.ndarray:
        for _ in range(3):  # the shifted inverse agrees with M^-1 to this order and damps what is stiff
            u = self._dt * self._solver.solve(self._generator.apply(u))
        return self._error * u

    def _dual_stages(self, rho: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        last = self._solver.solve_transpose(rho)
        moved = self._space.mass(last)
        first = self._solver.solve_transpose(self._e1 * moved)
        density = self._space.mass(first) + self._alpha * self._generator.transpose(first) - self._e0 * moved
        return last, first, density

    def forward(self, rho: np.ndarray) -> np.ndarray:
        return self._dual_stages(rho)[2]

    def adjoint(self, rho: np.ndarray, record: Any) -> tuple[np.ndarray, np.ndarray]:
        middle, new = self._stages(record)
        last, first, density = self._dual_stages(rho)
        weights = self._alpha * np.hstack([last, first])
        return density, self._generator.sensitivity(weights, np.hstack([new, middle + record]))


PROPAGATORS: dict[str, type[Propagator]] = {"explicit": Explicit, "implicit": Implicit}
