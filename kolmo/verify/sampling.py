"""Monte Carlo: estimates against closed forms, moments of single steps, coverage of the intervals.

Seeds are fixed: a sound installation gives the same figures again. Ranges are those in which chance
leaves all but one seed in a thousand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from kolmo.chain import Chain, Estimate
from kolmo.consistency import one_step
from kolmo.sde import SDE
from kolmo.verify.affine import CASES, affine_problem, chain_loss, modified_loss
from kolmo.verify.figure import Figure, below
from kolmo.verify.trained import trained_problem

#: standard errors that chance, over all the estimates of a check, may put between an estimate and the truth
SIGMAS = 4.0


def chain(backend: str) -> Iterator[Figure]:
    """J of the chain for every noise, plain and by antithetic pairs, which cancel what is odd."""
    for name, case in CASES.items():
        problem = affine_problem(2, case.noise)
        exact = chain_loss(case, problem)
        plain, paired = (Chain(problem, seed=3, antithetic=a).estimate(400_000) for a in (False, True))
        for kind, found in (("", plain), (" in pairs", paired)):
            yield below(f"{name}{kind}: error in standard errors", _score(found, exact, 1e-12), SIGMAS)
        if name == "gaussian_injection":
            ratio = (paired.standard_error / plain.standard_error) ** 2
            yield below(f"{name} in pairs: variance by that of plain paths", ratio, 0.2)


def sde(backend: str) -> Iterator[Figure]:
    """J of the modified equation of order 2 by torchsde, its time error allowed for."""
    for name in (
        "bernoulli_dropout",
        "hidden_dropout",
        "stochastic_depth",
        "gaussian_injection",
        "composition",
    ):
        case = CASES[name]
        problem = affine_problem(2, case.noise)
        found = SDE(problem, steps=4, seed=3, antithetic=True).estimate(60_000)
        score = _score(found, modified_loss(case, problem, 2), found.time_error)
        yield below(f"{name}: error in standard errors", score, SIGMAS)


def _score(found: Estimate, exact: float, other: float) -> float:
    """|value - exact| beyond another known error, in standard errors; without spread it has to be nothing."""
    beyond = max(0.0, abs(found.value - exact) - other)
    if beyond == 0:
        return 0.0
    return beyond / found.standard_error if found.standard_error > 0 else math.inf


def one_steps(backend: str) -> Iterator[Figure]:
    """Sampled moments of single increments of a tanh network, by regression on the formulas."""
    for name, case in CASES.items():
        if name == "none":
            continue
        found = one_step(trained_problem(2, case.noise, depth=4), points=32, samples=8192, layers=2)
        yield below(f"{name}: drift by tolerance", _share(found.drift, found.tolerance[0]), 1)
        yield below(f"{name}: covariance by tolerance", _share(found.covariance, found.tolerance[2]), 1)


def _share(ratio: float, tolerance: float) -> float:
    return abs(ratio - 1) / tolerance


def coverage(backend: str) -> Iterator[Figure]:
    """The share of seeds whose 95% interval holds J."""

    def share(exact: float, runs: int, run: Callable[[int], Estimate]) -> float:
        intervals = np.array([run(seed).interval for seed in range(runs)])
        return float(np.mean((intervals[:, 0] <= exact) & (exact <= intervals[:, 1])))

    def row(name: str, runs: int, covered: float) -> Figure:
        allowed = 3.3 * math.sqrt(0.95 * 0.05 / runs)
        return Figure(f"{name}, share of {runs} seeds", covered, 0.95 - allowed, min(1.0, 0.95 + allowed))

    case, injected = CASES["bernoulli_dropout"], CASES["gaussian_injection"]
    problem, additive = affine_problem(2, case.noise), affine_problem(2, injected.noise)
    exact = chain_loss(case, problem)
    yield row("chain", 400, share(exact, 400, lambda s: Chain(problem, seed=s).estimate(600)))
    pairs = share(exact, 400, lambda s: Chain(problem, seed=s, antithetic=True).estimate(1200))
    yield row("chain, antithetic", 400, pairs)
    few = share(chain_loss(injected, additive), 400, lambda s: Chain(additive, seed=s).estimate(12))
    yield row("chain, two copies of Gaussian injection", 400, few)
    diffusion = modified_loss(case, problem, 2)
    yield row("sde", 200, share(diffusion, 200, lambda s: SDE(problem, seed=s).estimate(600)))
