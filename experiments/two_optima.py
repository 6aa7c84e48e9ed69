r"""Both optima of one training problem, with noise and without, and what lies around and between them.

Planes and the line show J + penalties, of which the optima are minima; Hessians, and what the noise costs,
are of J alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kolmo.control import leading
from kolmo.errors import InfeasibleError
from kolmo.experiments.landscape import Minimum, Plane, Surface, filters, minima, random_directions
from kolmo.experiments.sharpness import NoiselessCurvature, Sharpness, deflated_trace, noiseless_sharpness
from kolmo.experiments.two_objectives import Reached, TwoObjectives

WITHOUT, WITH, BOTH = (
    "around the optimum without noise",
    "around the optimum with noise",
    "through both optima",
)
PLANES = (WITHOUT, WITH, BOTH)
#: step along the line between the optima, in its units, of fourth-order differences
_DIFFERENCE = 5e-3


@dataclass(frozen=True)
class Start:
    """Both optima of one start.

    half_width: of its box. plain, noisy: trained without and with noise. cost (2,): J with noise - J without
    at either, nan where the equation refuses the weights. test (2,): losses on the test data, noise off.
    sharpness: of J without noise at either.
    """

    seed: int
    half_width: float
    plain: Reached
    noisy: Reached
    cost: np.ndarray
    test: np.ndarray
    sharpness: tuple[Sharpness, Sharpness]

    @classmethod
    def of(cls, kept: dict[str, Any]) -> Start:
        """From the fields of one, as a memo keeps them."""
        return cls(
            **{
                **kept,
                "plain": Reached(**kept["plain"]),
                "noisy": Reached(**kept["noisy"]),
                "sharpness": tuple(Sharpness(**found) for found in kept["sharpness"]),
            }
        )


@dataclass(frozen=True)
class Map:
    """Both surfaces over a plane and their minima.

    lost: minima of the two grids that no minimum in the plane was found from. optima: coordinates (2,) of
    'plain' and 'noisy', where they are in the plane.
    """

    title: str
    plane: Plane
    plain: Surface
    noisy: Surface
    plain_minima: list[Minimum]
    noisy_minima: list[Minimum]
    lost: int
    optima: dict[str, np.ndarray]

    @classmethod
    def of(cls, kept: dict[str, Any]) -> Map:
        """From the fields of one, as a memo keeps them."""
        return cls(
            **{
                **kept,
                "plane": Plane(**kept["plane"]),
                "plain": Surface(**kept["plain"]),
                "noisy": Surface(**kept["noisy"]),
                "plain_minima": [Minimum(**found) for found in kept["plain_minima"]],
                "noisy_minima": [Minimum(**found) for found in kept["noisy_minima"]],
            }
        )


@dataclass(frozen=True)
class Line:
    """Both objectives along plain + s (noisy - plain), s (n,): values (n,), nan where refused.

    slope: of the objective with noise at s = 1, by differences of values; bend: its second derivative there.
    """

    s: np.ndarray
    plain: np.ndarray
    noisy: np.ndarray
    slope: float
    bend: float


@dataclass(frozen=True)
class Spectra:
    """Leading eigenvalues of Hessians of J (k,), largest modulus first, and traces.

    noisy: with noise at its optimum, by Lanczos; residual: |H v - lambda v| of its eigenpairs, the largest,
    relative to the largest eigenvalue; trace, trace_error: estimate and standard error. plain_at_noisy,
    plain_at_plain: without noise at both optima.
    """

    noisy: np.ndarray
    residual: float
    trace: float
    trace_error: float
    plain_at_noisy: np.ndarray
    plain_at_plain: np.ndarray


def measure(
    of: TwoObjectives,
    plain: Reached,
    noisy: Reached,
    half_width: float,
    radii: tuple[float, ...],
    directions: int,
) -> Start:
    """A start whose trainings are done; directions: drawn for the average increase, alike at both optima."""
    both = (plain.theta, noisy.theta)
    loss = of.noisy(half_width, penalties=False)
    found = tuple(noiseless_sharpness(of.problem, theta, radii, directions, [of.seed, 1]) for theta in both)
    values = [_or_nan(loss.value, theta) for theta in both]
    return Start(
        seed=of.seed,
        half_width=half_width,
        plain=plain,
        noisy=noisy,
        cost=np.array([value - at.loss for value, at in zip(values, found, strict=True)]),
        test=np.array([of.test_loss(theta) for theta in both]),
        sharpness=(found[0], found[1]),
    )


def _or_nan(value: Callable[[np.ndarray], float], theta: np.ndarray) -> float:
    try:
        return value(theta)
    except InfeasibleError:
        return float("nan")


def plane_of(of: TwoObjectives, start: Start, title: str, grid: int) -> tuple[Plane, dict[str, np.ndarray]]:
    """One of PLANES with `grid` points a side, an odd number, and the optima that lie on its grid.

    Around an optimum, 1 in either coordinate is a change as large as the weights. Through both, the first
    runs from the one without noise at 0 to the one with at 1; the second is orthogonal to it and as long.
    """
    drawn = random_directions(start.plain.theta, filters(of.network), 3, [of.seed, 2])
    around = np.linspace(-1, 1, grid)
    if title == BOTH:
        along = start.noisy.theta - start.plain.theta
        across = drawn[2] - (drawn[2] @ along) / (along @ along) * along
        across *= np.linalg.norm(along) / np.linalg.norm(across)
        optima = {"plain": np.array([0.0, 0.0]), "noisy": np.array([1.0, 0.0])}
        plane = Plane(start.plain.theta, np.stack([along, across]), np.linspace(-0.5, 1.5, grid), around)
        return plane, optima
    name, reached = ("plain", start.plain) if title == WITHOUT else ("noisy", start.noisy)
    axes = random_directions(reached.theta, filters(of.network), 2, [of.seed, 2])
    return Plane(reached.theta, axes, around, around), {name: np.zeros(2)}


def map_of(of: TwoObjectives, start: Start, title: str, grid: int) -> Map:
    """Both objectives over a plane, and where they are lowest."""
    plane, optima = plane_of(of, start, title, grid)
    plain, noisy = of.plain(), of.noisy(start.half_width)
    surfaces = plane.surface(plain.value), plane.surface(noisy.value)
    lowest = [minima(f, plane, surface) for f, surface in zip((plain, noisy), surfaces, strict=True)]
    return Map(
        title,
        plane,
        plain=surfaces[0],
        noisy=surfaces[1],
        plain_minima=lowest[0][0],
        noisy_minima=lowest[1][0],
        lost=lowest[0][1] + lowest[1][1],
        optima=optima,
    )


def line_of(of: TwoObjectives, start: Start, points: int) -> Line:
    """From half the distance before the optimum without noise to as far behind the one with noise."""
    along, e = start.noisy.theta - start.plain.theta, _DIFFERENCE
    s = np.linspace(-0.5, 1.5, points)
    weights = [[start.plain.theta + t * along] for t in s]
    plain, noisy = of.plain(), of.noisy(start.half_width)
    values = np.array([noisy.value(start.noisy.theta + k * e * along) for k in range(-2, 3)])
    return Line(
        s,
        Surface.of(plain.value, weights).values[:, 0],
        Surface.of(noisy.value, weights).values[:, 0],
        slope=float(np.array([1, -8, 0, 8, -1]) @ values / (12 * e)),
        bend=float(np.array([-1, 16, -30, 16, -1]) @ values / (12 * e * e)),
    )


def spectra_of(of: TwoObjectives, start: Start, count: int, probes: int) -> Spectra:
    """Eigenvalues and traces at both optima; count: of eigenvalues, probes: of the trace with noise."""
    objective = of.noisy(start.half_width, penalties=False)
    values, vectors = leading(objective, start.noisy.theta, count)
    product = objective.hessian(start.noisy.theta)
    apart = [np.linalg.norm(product(v) - value * v) for value, v in zip(values, vectors.T, strict=True)]
    trace, error = deflated_trace(product, values, vectors, probes, of.seed)
    without = []
    for reached in (start.noisy, start.plain):
        of.set(reached.theta)
        found = np.linalg.eigvalsh(NoiselessCurvature(of.problem).matrix())
        without.append(found[np.argsort(-np.abs(found))][:count])
    return Spectra(values, float(max(apart) / abs(values[0])), trace, error, without[0], without[1])
