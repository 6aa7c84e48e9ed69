r"""Loss landscapes: an objective over lines and planes of weights, and its minima there.

Random directions are filter-normalised (Li, Xu, Taylor, Studer, Goldstein, 1712.09913, section 4): a *filter*
is what one hidden unit of one layer receives with, its row of W_k and its bias, or what it gives, its column
of V_k. A Gaussian direction d is scaled, filter by filter, to

    d_f  <-  d_f |theta_f| / |d_f|,

so that a step of length 1 changes every filter by as much as it is long. With relu a unit's scale is no
property of the network, which is the same with (c W, c b, V / c) for every c > 0: its filters rescale, the
directions with them, and the landscape over them stays. For an activation that saturates, such as tanh,
weights of another scale are another network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kolmo.control import Objective, newton
from kolmo.errors import InfeasibleError, InputError
from kolmo.network import LayeredNetwork, ResidualNetwork

#: norm of the gradient by the plane's coordinates at which a minimum counts as found, units of the loss
TOLERANCE = 1e-9
#: minima of a plane nearer to each other than this, in its coordinates, are one
_SAME = 1e-4


def filters(network: LayeredNetwork) -> np.ndarray:
    """The filter of every weight in the vector of all (P,), numbered from 0.

    First what units receive with, layer by layer, then what they give. Raises InputError where the block is
    not V sigma(W x + b).
    """
    if not isinstance(network, ResidualNetwork):
        raise InputError("landscape: filters are of the block V sigma(W x + b), this network has another")
    unit = np.arange(network.depth * network.width).reshape(network.depth, network.width)
    of = {
        "W": np.repeat(unit[:, :, None], network.dim, axis=2),
        "b": unit,
        "V": unit.size + np.repeat(unit[:, None, :], network.dim, axis=1),
    }
    return np.concatenate([of[name].ravel() for name, _ in network.named_parameters()])


def lengths(theta: np.ndarray, of: np.ndarray) -> np.ndarray:
    """|theta_f| of every filter (F,); of: the filter of every weight."""
    return np.sqrt(np.bincount(of, theta**2))


def normalised(direction: np.ndarray, theta: np.ndarray, of: np.ndarray) -> np.ndarray:
    """The direction with each filter as long as that of the weights theta (P,)."""
    own = lengths(direction, of)
    scale = np.divide(lengths(theta, of), own, out=np.zeros_like(own), where=own > 0)
    return direction * scale[of]


def random_directions(theta: np.ndarray, of: np.ndarray, count: int, seed: int | list[int]) -> np.ndarray:
    """Filter-normalised Gaussian directions at theta (count, P)."""
    drawn = np.random.default_rng(seed).standard_normal((count, len(theta)))
    return np.stack([normalised(d, theta, of) for d in drawn])


@dataclass(frozen=True)
class Plane:
    """Weights origin + first * axes[0] + second * axes[1] over a grid of coordinates.

    origin (P,); axes (2, P); first (n,), second (m,): increasing coordinates.
    """

    origin: np.ndarray
    axes: np.ndarray
    first: np.ndarray
    second: np.ndarray

    def at(self, *coordinates: float) -> np.ndarray:
        """The weights at a point of the plane (P,)."""
        return np.asarray(self.origin + np.asarray(coordinates) @ self.axes)

    def surface(self, value: Callable[[np.ndarray], float]) -> Surface:
        """The values of a function of weights on the grid."""
        return Surface.of(value, [[self.at(a, b) for b in self.second] for a in self.first])


@dataclass(frozen=True)
class Surface:
    """Values on a grid of weights (n, m), nan where they are refused; refused: how many, by reason."""

    values: np.ndarray
    refused: dict[str, int]

    @classmethod
    def of(cls, value: Callable[[np.ndarray], float], weights: list[list[np.ndarray]]) -> Surface:
        """value raises InfeasibleError where it refuses weights."""
        values = np.full((len(weights), len(weights[0])), np.nan)
        refused: dict[str, int] = {}
        for index in np.ndindex(values.shape):
            try:
                values[index] = value(weights[index[0]][index[1]])
            except InfeasibleError as error:
                reason = type(error).__name__
                refused[reason] = refused.get(reason, 0) + 1
        return cls(values, refused)

    def lowest(self) -> list[tuple[int, int]]:
        """Grid points within the border, none of whose eight neighbours is lower or refused."""
        found, last = [], np.array(self.values.shape) - 1
        for i, j in np.ndindex(self.values.shape):
            if 0 < i < last[0] and 0 < j < last[1]:
                around = self.values[i - 1 : i + 2, j - 1 : j + 2]
                if self.values[i, j] <= around.min():  # of nan: false
                    found.append((i, j))
        return found


class InPlane(Objective):
    """An objective as a function of a plane's coordinates (2,); its derivatives are projections."""

    def __init__(self, whole: Objective, plane: Plane) -> None:
        super().__init__(whole.network, whole.estimator, whole.penalties)
        self._whole, self._plane = whole, plane
        self._at = np.zeros(len(plane.axes))

    @property
    def theta(self) -> np.ndarray:
        """The coordinates."""
        return self._at.copy()

    @theta.setter
    def theta(self, theta: np.ndarray) -> None:
        self._at = np.array(theta, dtype=np.float64)
        self._whole.theta = self._plane.at(*self._at)

    def value(self, theta: np.ndarray) -> float:
        self.theta = theta
        self.evaluations += 1
        return self._whole.value(self._plane.at(*theta))

    def value_and_gradient(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        self.theta = theta
        self.evaluations += 1
        value, gradient = self._whole.value_and_gradient(self._plane.at(*theta))
        return value, self._plane.axes @ gradient

    def hessian(self, theta: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        self.theta = theta
        self.curvatures += 1
        product, axes = self._whole.hessian(self._plane.at(*theta)), self._plane.axes

        def projected(v: np.ndarray) -> np.ndarray:
            self.products += 1
            return np.asarray(axes @ product(axes.T @ v))

        return projected


@dataclass(frozen=True)
class Minimum:
    """A strict local minimum over a plane.

    at: its coordinates (2,). value: there. slope: norm of the gradient by the coordinates. bends: eigenvalues
    of the 2 x 2 Hessian, increasing, both positive.
    """

    at: np.ndarray
    value: float
    slope: float
    bends: np.ndarray


def minima(objective: Objective, plane: Plane, surface: Surface) -> tuple[list[Minimum], int]:
    """The local minima of a surface, refined by Newton's method in the plane, lowest first; and those lost.

    objective: the one the surface shows. Lost are lowest points of the grid from which Newton's method ends
    outside of it or comes to no minimum.
    """
    inside = InPlane(objective, plane)
    found: list[Minimum] = []
    lost = 0
    for i, j in surface.lowest():
        start = np.array([plane.first[i], plane.second[j]])
        reached = newton(inside, start, tolerance=TOLERANCE, radius=float(np.diff(plane.first).max()))
        at = reached.theta
        within = plane.first[0] <= at[0] <= plane.first[-1] and plane.second[0] <= at[1] <= plane.second[-1]
        product = inside.hessian(at)
        bends = np.linalg.eigvalsh(np.stack([product(e) for e in np.eye(2)]))
        if not within or reached.status != "stationary" or bends[0] <= 0:
            lost += 1
        elif all(np.linalg.norm(at - other.at) > _SAME for other in found):
            found.append(Minimum(at, reached.value, reached.residual, bends))
    return sorted(found, key=lambda minimum: minimum.value), lost
