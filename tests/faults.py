"""Faults for the self-check: each perturbs one scheme, noise or formula; checks that have to see it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kolmo import brownian, chain, modified, sde
from kolmo.modified import Coefficients
from kolmo.network import ResidualNetwork, TwoLayerJet
from kolmo.noise import BernoulliDropout, GaussianInjection, ShakeShake, StochasticDepth
from kolmo.noise.law import TwoPoint, Uniform
from kolmo.noise.structure import Factor
from kolmo.pde import kolmogorov, march, propagator, spline
from kolmo.pde.boundary import Taper
from kolmo.pde.box_space import BoxGenerator, BoxSpace
from kolmo.pde.mapped import MappedGenerator, MappedSpace
from kolmo.pde.space import Space
from kolmo.stream import Draws

Patch = pytest.MonkeyPatch


# ------------------------------------------------------------------ schemes


def wrong_sign(patch: Patch) -> None:
    """Order 2 adds what it should subtract."""
    right = modified.drift
    patch.setattr(modified, "drift", lambda m, D, h, order: right(m, D, -h, order))


def neumann(patch: Patch) -> None:
    """The second correction of the lumped mass is left out."""

    def fewer(right: Callable[..., Any]) -> Callable[..., Any]:
        def explicit(self: Any, dt: float, count: int, corrections: int) -> Any:
            return right(self, dt, count, corrections - 1)

        return explicit

    for kind in (BoxGenerator, MappedGenerator):
        patch.setattr(kind, "explicit", fewer(kind.explicit))


def _uncompiled(patch: Patch) -> None:
    """Substeps by the generic products, which a fault can reach."""
    for kind in (BoxGenerator, MappedGenerator):
        patch.setattr(kind, "explicit", lambda *_: None)


def taylor_coefficient(patch: Patch) -> None:
    """1/2.9 in place of 1/3."""

    def stages(self: Any, u: np.ndarray) -> list[np.ndarray]:
        found = [u]
        for j in (4, 2.9, 2, 1)[-self.degree :]:
            found.append(u + self._solve_mass(self._generator.apply(found[-1])) * (self._dt / j))
        return found

    _uncompiled(patch)
    patch.setattr(propagator.ExplicitSteps, "stages", stages)


def tr_bdf2(patch: Patch) -> None:
    """gamma = 0.6 for the step, 2 - sqrt 2 for its weights: constants are kept, the order is not."""
    init = propagator._ImplicitSteps.__init__

    def changed(self: Any, space: Space, generator: Any, dt: float, count: int) -> None:
        init(self, space, generator, dt * 0.6 / (2 - math.sqrt(2)), count)

    patch.setattr(propagator._ImplicitSteps, "__init__", changed)


def no_mask(patch: Patch) -> None:
    """The adjoint forgets what the clip cut."""
    right = march.adjoint

    def forgetful(trajectory: march.Trajectory, *rest: Any) -> np.ndarray:
        kept: list[list[np.ndarray | None]] = [[None] * len(layer) for layer in trajectory.kept]
        return right(dataclasses.replace(trajectory, kept=kept), *rest)

    patch.setattr(march, "adjoint", forgetful)


def no_taper(patch: Patch) -> None:
    """The diffusion reaches the faces as it is."""
    right = Taper.__call__

    def drift_only(taper: Taper, free: Coefficients) -> Coefficients:
        return Coefficients(right(taper, free).drift, free.diffusion)

    patch.setattr(ResidualNetwork, "compiled", False)  # compiled, a fault does not reach it
    patch.setattr(Taper, "__call__", drift_only)


def mass(patch: Patch) -> None:
    """The consistent mass is 1% too large, its lumped one right."""

    def heavier(right: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        return lambda self, u: 1.01 * right(self, u)

    for kind in (BoxSpace, MappedSpace):
        patch.setattr(kind, "mass", heavier(kind.mass))


def generator(patch: Patch) -> None:
    """The generator sees 1% more drift."""

    def faster(right: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self, b, a: right(self, 1.01 * b, a)

    for kind in (BoxSpace, MappedSpace):
        patch.setattr(kind, "generator", faster(kind.generator))


def initial_measure(patch: Patch) -> None:
    """Each point goes to the nearest node in place of the corners of its cell."""

    def nearest(space: Space, problem: Any) -> np.ndarray:
        x, labels = problem.data.points.numpy(), problem.data.labels.numpy()
        rows = np.argmin(((x[:, None] - space.coefficient_points) ** 2).sum(axis=2), axis=1)
        found = np.zeros((len(space.lumped_mass), 2))
        np.add.at(found, (rows, labels), 1 / len(labels))
        return found

    patch.setattr(kolmogorov, "initial_measure", nearest)


def one_transposed_stage(patch: Patch) -> None:
    """The density's step stops a power of the generator early."""

    def forward(self: Any, rho: np.ndarray) -> np.ndarray:
        result, stage = rho, rho
        for j in range(1, self.degree):
            stage = self._generator.transpose(self._solve_mass(stage)) * (self._dt / j)
            result = result + stage
        return result

    _uncompiled(patch)
    patch.setattr(propagator.ExplicitSteps, "forward", forward)


def off_diagonal(patch: Patch) -> None:
    """The derivative by a_12 is counted for a_21 too."""

    def doubled(right: Callable[..., Any]) -> Callable[..., Any]:
        def pullback(self: Any, cotangent: np.ndarray, diagonal: bool) -> tuple[np.ndarray, np.ndarray]:
            b, a = right(self, cotangent, diagonal)
            return b, a if diagonal else a * (2 - np.eye(self.dim))

        return pullback

    for kind in (BoxSpace, MappedSpace):
        patch.setattr(kind, "pullback", doubled(kind.pullback))


def collocation(patch: Patch) -> None:
    """Spline rows [1 4.1 1]/6."""
    right = spline.TensorSpline.coefficients
    patch.setattr(spline.TensorSpline, "coefficients", lambda self, u: right(self, u) * (6 / 6.1) ** self.dim)


def spline_transpose(patch: Patch) -> None:
    """The transposed collocation is 1% too large."""
    right = spline.TensorSpline.coefficients_transposed
    patch.setattr(spline.TensorSpline, "coefficients_transposed", lambda self, c: 1.01 * right(self, c))


def jacobian(patch: Patch) -> None:
    """(grad f) v loses sigma'."""

    def linear(self: Any, direction: Tensor) -> Tensor:
        return (direction @ self._W.transpose(1, 2)) @ self._V.transpose(1, 2)

    patch.setattr(TwoLayerJet, "directional", linear)


# ------------------------------------------------------------------ noises and samples


def covariance(patch: Patch) -> None:
    """Dropout's C is 10% too large, its masks right."""
    right = BernoulliDropout.covariance
    patch.setattr(BernoulliDropout, "covariance", lambda self, jet: _scaled(right(self, jet), 1.1, jet))


def _scaled(structure: Any, factor: float, jet: Any) -> Any:
    return structure.scaled(torch.full((len(jet.layers),), math.sqrt(factor), dtype=torch.float64))


def masks(patch: Patch) -> None:
    """Masks of probability p + 0.02, scaled by 1/p."""
    right = TwoPoint.draw

    def more(self: Any, draws: Draws, units: int, shared: bool) -> Tensor:
        return right(TwoPoint(min(1.0, self.p + 0.02), self.scale), draws, units, shared) + 0.02 * self.scale

    patch.setattr(TwoPoint, "draw", more)


def uniform(patch: Patch) -> None:
    """Uniform numbers 5% too wide where they are drawn."""
    right = Uniform.draw
    patch.setattr(Uniform, "draw", lambda self, d, units, shared: 1.05 * right(self, d, units, shared))


def biased_mean(patch: Patch) -> None:
    """Test-time scaling forgets that m = p f."""
    patch.setattr(StochasticDepth, "mean", lambda self, jet: jet)


def injection(patch: Patch) -> None:
    """Injected noise loses its sqrt(h) where it is sampled."""
    patch.setattr(GaussianInjection, "scale", lambda self, step: step)


def branches(patch: Patch) -> None:
    """Shake-shake with alpha uniform on an interval of length 2."""
    patch.setattr(ShakeShake, "law", lambda self, layer, depth: Uniform(1.0))


def factor(patch: Patch) -> None:
    """Hidden dropout loses the covariance of two outputs."""
    right = Factor.packed
    patch.setattr(Factor, "packed", lambda self: right(self) * torch.eye(self.V.shape[1]))


def sde_root(patch: Patch) -> None:
    """The root of a is 5% too large: as a root of 1.1 a."""
    right = brownian.LayerSDE._root
    patch.setattr(brownian.LayerSDE, "_root", lambda self, x: 1.05 * right(self, x))


def sde_order(patch: Patch) -> None:
    """The SDE's drift stays at order 1."""
    right = brownian.drift
    patch.setattr(brownian, "drift", lambda m, D, h, order: right(m, D, h, 1))


def standard_error(patch: Patch) -> None:
    """Intervals a fifth too short."""
    right = chain.Chain._estimate

    def short(self: chain.Chain, *arguments: Any) -> chain.Estimate:
        found = right(self, *arguments)
        return dataclasses.replace(found, standard_error=0.8 * found.standard_error)

    patch.setattr(chain.Chain, "_estimate", short)


def sde_standard_error(patch: Patch) -> None:
    """The SDE's intervals a third too short."""
    right = sde.SDE.estimate

    def short(self: sde.SDE, paths: int) -> sde.SdeEstimate:
        found = right(self, paths)
        return dataclasses.replace(found, standard_error=0.67 * found.standard_error)

    patch.setattr(sde.SDE, "estimate", short)


def normal_quantile(patch: Patch) -> None:
    """Intervals of few copies by the normal quantile."""
    patch.setattr(chain, "degrees_of_freedom", lambda variances, groups: math.inf)


def unmirrored(patch: Patch) -> None:
    """Antithetic pairs that are the same path twice."""
    right = Draws.uniform

    def twice(self: Draws, units: int, shared: bool = False) -> Tensor:
        found = right(self, units, shared)
        if not self.stream.antithetic:
            return found
        batches = found.reshape(-1, self.stream.batch, units)
        batches[1::2] = batches[::2]
        return batches.reshape(found.shape)

    patch.setattr(Draws, "uniform", twice)


Fault = Callable[[Patch], None]
#: a fault, and the checks that have to see it
FAULTS: list[tuple[Fault, list[str]]] = [
    (wrong_sign, ["coefficients", "weak-orders"]),
    (neumann, ["time-steps"]),
    (taylor_coefficient, ["time-steps"]),
    (tr_bdf2, ["time-steps"]),
    (no_mask, ["limiters"]),
    (no_taper, ["conservation"]),
    (mass, ["conservation", "matrices"]),
    (generator, ["matrices", "transport", "equation"]),
    (initial_measure, ["conservation", "time-steps"]),
    (one_transposed_stage, ["conservation"]),
    (off_diagonal, ["taylor"]),
    (collocation, ["recursion"]),
    (spline_transpose, ["taylor"]),
    (jacobian, ["coefficients"]),
    (covariance, ["coefficients", "one-step"]),
    (masks, ["chain"]),
    (uniform, ["chain", "one-step"]),
    (biased_mean, ["coefficients", "chain"]),
    (injection, ["recursion", "chain"]),
    (branches, ["recursion", "chain"]),
    (factor, ["coefficients"]),
    (sde_root, ["sde"]),
    (sde_order, ["sde"]),
    (standard_error, ["coverage"]),
    (sde_standard_error, ["coverage"]),
    (normal_quantile, ["coverage"]),
    (unmirrored, ["chain"]),
]
