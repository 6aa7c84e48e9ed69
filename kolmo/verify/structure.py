"""What holds to rounding: formulas of the coefficients, duality, mass, matrices of both backends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from kolmo import noise
from kolmo.modified import modified_equation
from kolmo.network import AutomaticJet
from kolmo.pde import BackwardKolmogorov, Explicit, Implicit, make_space
from kolmo.pde.dolfinx_compat import unavailable
from kolmo.pde.space import Space
from kolmo.verify.affine import CASES, affine_problem, blocks, modified_fields
from kolmo.verify.equation import value
from kolmo.verify.figure import Figure, below
from kolmo.verify.trained import trained_problem


def coefficients(backend: str) -> Iterator[Figure]:
    """Drift and diffusion of every noise, pointwise; second derivatives of a nonlinear block."""
    points = np.random.default_rng(2).uniform(-1, 1, (7, 2))
    z = np.hstack([np.ones((7, 1)), points])
    for number in (1, 2):
        worst = 0.0
        for case in CASES.values():
            problem = affine_problem(2, case.noise)
            with torch.no_grad():
                found = modified_equation(problem.network, case.noise, torch.from_numpy(points), number)
            a = found.diffusion if found.diffusion.ndim == 4 else torch.diag_embed(found.diffusion)
            for block in blocks(problem):
                B, roots = modified_fields(case, block, number)
                spread = np.zeros((7, 2, 2)) + sum(
                    (z @ M.T)[:, :, None] * (z @ M.T)[:, None, :] for M in roots
                )
                worst = max(worst, float(np.abs(found.drift[block.number].numpy() - z @ B.T).max()))
                worst = max(worst, float(np.abs(a[block.number].numpy() - spread).max()))
        yield below(f"affine blocks, every noise, order {number}", worst, 1e-12)
    network = trained_problem(2, noise.NoNoise()).network
    x, D = torch.from_numpy(points), torch.tensor([[1.0, 0.3], [0.3, 0.5]]).double()
    with torch.no_grad():
        ours, theirs = network.jet(x), AutomaticJet(network, x, range(network.depth))
        along = ours.value
        pairs = [
            (ours.directional(along), theirs.directional(along)),
            (ours.jacobian(), theirs.jacobian()),
            (ours.second(D), theirs.second(D)),
        ]
    difference = max(float((a - b).abs().max()) for a, b in pairs)
    yield below("tanh block, derivatives 1 and 2", difference, 1e-12)


def conservation(backend: str) -> Iterator[Figure]:
    """What holds on every mesh: duality, mass, constants, the initial measure, nothing leaves the box."""
    for dim, cells in ((1, 64), (2, 20), (3, 6)):
        problem = trained_problem(dim, noise.GaussianInjection(0.3))
        shares = np.bincount(problem.data.labels.numpy()) / len(problem.data)
        for scheme in (Explicit(), Implicit()):
            keys: dict[str, Any] = {"cells": cells, "half_width": 3.0, "propagator": scheme, "limit": False}
            equation = BackwardKolmogorov(problem, backend=backend, **keys)
            solution = equation.solve()
            name = f"{dim}-D, {type(scheme).__name__.lower()}"
            yield below(
                f"{name}: sum <u, rho> over time", np.ptp(solution.duality) / solution.duality[0], 1e-12
            )
            mass = np.abs(solution.density.sum(axis=1) - shares).max()
            yield below(f"{name}: mass of the densities over time", mass, 1e-12)
            yield below(f"{name}: the constant 1 after a step", _constant(equation), 1e-12)
        yield below(f"{dim}-D: mean of the initial measure", _mean(equation), 1e-12)
        yield below(f"{dim}-D: drift and diffusion through the faces", _normal(equation), 1e-12)


def _constant(equation: BackwardKolmogorov) -> float:
    """|P 1 - 1| for the first layer."""
    with torch.no_grad():
        found = equation.coefficients()
    generator = equation.space.generator(found.drift[0].numpy(), found.diffusion[0].numpy())
    steps = equation.propagator.on_layer(equation.space, generator, equation.problem.network.step, 0)
    one = np.ones((len(equation.space.lumped_mass), 1))
    return float(np.abs(steps.backward(one) - 1).max())


def _mean(equation: BackwardKolmogorov) -> float:
    """First moments of mu as nodal masses (P1 holds x exactly) against the data's."""
    density = equation.solve().density[0].sum(axis=1)
    mean = equation.problem.data.points.numpy().mean(axis=0)
    return float(np.abs(density @ equation.space.coefficient_points - mean).max())


def _normal(equation: BackwardKolmogorov) -> float:
    """The largest outward drift and normal diffusion at nodes on the faces."""
    with torch.no_grad():
        found = equation.coefficients()
    x, worst = equation.space.coefficient_points, 0.0
    a = found.diffusion if found.diffusion.ndim == 4 else torch.diag_embed(found.diffusion)
    for axis in range(equation.space.dim):
        face = np.abs(np.abs(x[:, axis]) - equation.space.half_width) < 1e-9
        outward = found.drift[:, face, axis].numpy() * np.sign(x[face, axis])
        worst = max(worst, float(outward.max()), float(a[:, face, axis].abs().max()))
    return worst


def matrices(backend: str) -> Iterator[Figure]:
    """The generator's matrix against the backend's own forms, and one backend against the other."""
    for dim, cells in ((1, 9), (2, 6), (3, 3)):
        space = make_space(backend, dim, cells, 1.7)
        b, a = _random(space)
        own = space.assemble(b, a).toarray()
        generator = space.generator(b, a)
        difference = generator.apply(np.eye(len(b))) - own
        yield below(
            f"{dim}-D: the generator against the forms of {backend}",
            np.abs(difference).max() / np.abs(own).max(),
            1e-12,
        )
        lumped = space.mass(np.ones((len(b), 1)))[:, 0]
        yield below(f"{dim}-D: total mass against the box's volume", lumped.sum() / 3.4**dim - 1, 1e-12)
        moved = generator.apply(space.coefficient_points) - space.mass(b)
        inside = (np.abs(space.coefficient_points) < 1.69).all(axis=1)
        yield below(f"{dim}-D: K x - M b inside: diffusion of x", np.abs(moved[inside]).max(), 1e-12)
    problem = trained_problem(2, noise.GaussianInjection(0.3))
    names = ["skfem", "box", *(["dolfinx"] if unavailable() is None else [])]
    found = {name: value(problem, name, cells=20, half_width=3.0) for name in names}
    for name in names[1:]:
        yield below(f"J by skfem against J by {name}", found["skfem"] / found[name] - 1, 1e-10)


def _random(space: Space) -> tuple[np.ndarray, np.ndarray]:
    """Nodal drift, and a semidefinite diffusion."""
    rng = np.random.default_rng(0)
    count, dim = space.coefficient_points.shape
    root = rng.standard_normal((count, dim, dim))
    return rng.standard_normal((count, dim)), root @ root.transpose(0, 2, 1)
