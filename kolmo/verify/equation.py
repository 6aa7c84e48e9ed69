"""The Kolmogorov equation on a mesh: closed forms, orders in space, time and the number of layers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy.linalg import expm

from kolmo import noise
from kolmo.data import Dataset
from kolmo.loss import Logistic
from kolmo.network import ResidualNetwork
from kolmo.pde import BackwardKolmogorov, Explicit, Implicit
from kolmo.pde.propagator import Propagator
from kolmo.problem import Problem
from kolmo.verify.affine import CASES, Case, affine_problem, chain_loss, injection_case, modified_loss
from kolmo.verify.figure import Figure, around, below, order
from kolmo.verify.trained import trained_problem

#: half width of the box, radius of the data, Gaussian injection: the taper is several deviations away
BOXES = {1: (5.0, 0.8, 0.5), 2: (4.0, 0.6, 0.4), 3: (2.5, 0.3, 0.25)}
CELLS = {1: (32, 64, 128), 2: (18, 26, 40), 3: (8, 12, 16)}


def value(problem: Problem, backend: str, **options: Any) -> float:
    """J without the clip: the march is then linear, and converges as the mesh does."""
    with torch.no_grad():
        return float(BackwardKolmogorov(problem, backend=backend, limit=False, **options).expected_loss())


def extrapolated(cells: tuple[int, ...], values: list[float]) -> float:
    """The last two values, their second-order error removed."""
    return values[-1] + (values[-1] - values[-2]) / ((cells[-1] / cells[-2]) ** 2 - 1)


def closed_forms(backend: str) -> Iterator[Figure]:
    """Ornstein-Uhlenbeck processes in 1, 2 and 3-D, and geometric Brownian motion in 2-D."""
    for dim, (half_width, radius, std) in BOXES.items():
        case = injection_case(std)
        schemes: list[Propagator] = [Explicit()] if dim == 3 else [Explicit(), Implicit(8)]
        for scheme in schemes:
            name = f"{dim}-D, {type(scheme).__name__.lower()}"
            yield from _converges(name, case, dim, half_width, radius, scheme, backend)
    dropout = CASES["bernoulli_dropout"]
    yield from _converges("2-D, dropout", dropout, 2, BOXES[2][0], BOXES[2][1], Implicit(16), backend)


def _converges(
    name: str, case: Case, dim: int, half_width: float, radius: float, scheme: Propagator, backend: str
) -> Iterator[Figure]:
    problem = affine_problem(dim, case.noise, radius=radius)
    exact = modified_loss(case, problem, 2)
    keys = {"half_width": half_width, "propagator": scheme}
    values = [value(problem, backend, cells=n, **keys) for n in CELLS[dim]]
    yield around(f"{name}: order of J in the mesh", -order(CELLS[dim], np.array(values) - exact), 2, 0.25)
    yield below(
        f"{name}: relative error of the extrapolated J",
        extrapolated(CELLS[dim], values) / exact - 1,
        1e-3,
    )


def time_orders(backend: str) -> Iterator[Figure]:
    """J on one mesh against its limit in the substep, and that limit by the matrix exponential."""
    problem = trained_problem(1, noise.GaussianInjection(0.3), depth=2)
    options: dict[str, Any] = {"cells": 48, "half_width": 3.5}
    equation = BackwardKolmogorov(problem, backend=backend, limit=False, **options)
    for kind, counts in ((Explicit, (8, 16, 32)), (Implicit, (4, 8, 16))):
        exact = _by_exponentials(equation, consistent=kind is Implicit)
        errors = [value(problem, backend, propagator=kind(substeps=n), **options) - exact for n in counts]
        yield around(
            f"order in the substep, {kind.__name__.lower()}", -order(counts, errors), kind.order, 0.25
        )


def _by_exponentials(equation: BackwardKolmogorov, consistent: bool) -> float:
    """J of the space-discrete equation: exp(h M^-1 K) on every layer, from dense matrices."""
    space, problem = equation.space, equation.problem
    one = np.eye(len(space.lumped_mass))
    mass = space.mass(one)
    inverse = np.linalg.inv(mass)
    if not consistent:  # the Neumann series of the explicit scheme
        defect = one - mass / space.lumped_mass[:, None]
        inverse = (
            sum(np.linalg.matrix_power(defect, j) for j in range(Explicit().corrections + 1))
            / space.lumped_mass
        )
    with torch.no_grad():
        found = equation.coefficients()
        points = torch.from_numpy(space.coefficient_points)
        u = np.stack([problem.loss(points, label).numpy() for label in (0, 1)], axis=1)
    for b, a in zip(reversed(found.drift.numpy()), reversed(found.diffusion.numpy()), strict=True):
        u = expm(problem.network.step * inverse @ space.generator(b, a).apply(one)) @ u
    at_data = space.interpolation(problem.data.points.numpy()) @ u
    labels = problem.data.labels.numpy()
    return float(at_data[np.arange(len(labels)), labels].mean())


def transport(backend: str) -> Iterator[Figure]:
    """No noise: an eighth of a turn about the origin, values carried along circles."""
    angle, cells, rng = math.pi / 4, (36, 54, 81), np.random.default_rng(1)
    spin = angle * torch.tensor([[0.0, -1.0], [1.0, 0.0]]).double().expand(4, 2, 2)
    W = torch.eye(2).double().expand(4, 2, 2)
    network = ResidualNetwork.from_weights(W, torch.zeros(4, 2), spin, activation="identity")
    x = torch.from_numpy(rng.uniform(-0.8, 0.8, (400, 2)))
    problem = Problem(Dataset(x, (x[:, 0] > 0).long()), network, noise.NoNoise(), Logistic(2.0))
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]).double()
    exact = float(problem.loss(x @ turn, problem.data.labels).mean())
    for scheme in (Explicit(), Implicit(8)):
        keys: dict[str, Any] = {"half_width": 3.0, "propagator": scheme, "order": 1}
        errors = [value(problem, backend, cells=n, **keys) - exact for n in cells]
        name = type(scheme).__name__.lower()
        yield Figure(f"order of J in the mesh, {name}", -order(cells, errors), 1.9, math.inf)
        yield below(f"error of J on {cells[-1]} cells, {name}", errors[-1], 1e-3)


def weak_orders(backend: str) -> Iterator[Figure]:
    """|J of the equation - J of the chain| in the number of layers, meshes so fine that only h matters."""
    depths, cells = (3, 6, 12), (400, 800)  # the data are nodes of both meshes
    for name in ("gaussian_injection", "hidden_dropout", "shake_shake"):
        case = CASES[name]
        for number in (1, 2):
            errors = []
            for depth in depths:
                problem = affine_problem(1, case.noise, depth)
                keys = {"order": number, "half_width": 4.0, "propagator": Implicit(-(-384 // depth))}
                values = [value(problem, backend, cells=n, **keys) for n in cells]
                errors.append(extrapolated(cells, values) - chain_loss(case, problem))
            what = f"{name}: order in h of the modified equation {number}"
            yield around(what, -order(depths, errors), number, 0.25)
