r"""Finite-element spaces for the Kolmogorov equations.

A space knows its mesh and basis and nothing of networks: drift and diffusion reach it as
values at its coefficient points (the nodes of P1: group finite elements), and derivatives
leave it the same way. The generator L u = b . grad u + 1/2 a : hess u has the weak form

    K_rs = int (b_h . grad phi_s) phi_r - 1/2 (a_h grad phi_s) . grad phi_r
           - 1/2 (div a_h . grad phi_s) phi_r dx,

b_h and a_h the P1 interpolants, div a_h elementwise, so that K is linear in the nodal values
of b and a. No boundary terms: coefficients arrive tapered, and the characteristics do not
leave the box (Fichera). K 1 = 0 always (mass of the density is conserved), and the diffusion
does not act on affine functions: d/dt E X = E b exactly.

Reference: Ern, Guermond, Theory and Practice of Finite Elements, 2004; Fletcher, The group
finite element formulation, CMAME 37 (1983).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from kolmo.errors import NonFiniteError
from kolmo.pde.mesh import Mesh


class Generator(ABC):
    """The matrix K of one layer, as an operator on nodal values (Q, C), C columns at once."""

    @abstractmethod
    def apply(self, u: np.ndarray) -> np.ndarray:
        """K u, shape (Q, C)."""

    @abstractmethod
    def transpose(self, p: np.ndarray) -> np.ndarray:
        """K^T p, shape (Q, C)."""

    @abstractmethod
    def rate(self) -> float:
        """max_r sum_s |K_rs| / Ml_r, in 1 / time: bounds the spectrum of Ml^-1 K (over all ranks)."""

    @abstractmethod
    def sensitivity(self, p: np.ndarray, u: np.ndarray) -> np.ndarray:
        """d/dK of sum_c p_c^T K u_c as the space's cotangent (see Space.pullback)."""

    @abstractmethod
    def shifted(self, alpha: float) -> ShiftedSolver:
        """A solver of (M - alpha K) x = y and its transpose, alpha in units of time."""

    def explicit(self, dt: float, count: int, corrections: int, degree: int) -> Steps | None:
        """Compiled substeps of the explicit propagator, None where its generic ones serve."""
        return None


class Steps(ABC):
    """`count` equal substeps over one layer, as maps of nodal values (Q, C)."""

    count: int

    @abstractmethod
    def backward(self, u: np.ndarray) -> np.ndarray:
        """The value function one substep earlier."""

    @abstractmethod
    def forward(self, rho: np.ndarray) -> np.ndarray:
        """The density one substep later: the exact transpose of `backward`."""

    def record(self, u: np.ndarray) -> tuple[np.ndarray, Any]:
        """`backward(u)`, and what `adjoint` takes of this substep: u itself unless the scheme keeps more."""
        return self.backward(u), u

    @abstractmethod
    def adjoint(self, rho: np.ndarray, record: Any) -> tuple[np.ndarray, np.ndarray]:
        """`forward(rho)` and the cotangent of K: d/dK of sum_c rho_c . backward(u)_c; record: u's."""

    @abstractmethod
    def derivative(self, u: np.ndarray) -> np.ndarray:
        """A u = M^-1 K u with the scheme's own inverse of the mass: -du/dt on this mesh."""

    @abstractmethod
    def defect(self, u: np.ndarray) -> np.ndarray:
        """The leading term of one substep's error in time, exp(dt A) u - backward(u)."""


class LayerSteps(Sequence[Steps]):
    """The substeps of all layers, each made when first asked for: then K is still in cache as it marches.

    make: of a layer's number; it may raise, then and again. kept: as long as this is, else a layer is made
    each time it is asked for.
    """

    def __init__(self, layers: int, make: Callable[[int], Steps], kept: bool = True) -> None:
        self._made: list[Steps | None] = [None] * layers
        self._make, self._kept = make, kept

    def __len__(self) -> int:
        return len(self._made)

    def __getitem__(self, layer: Any) -> Any:
        if isinstance(layer, slice):
            return [self[k] for k in range(len(self))[layer]]
        layer = range(len(self))[layer]
        found = self._made[layer]
        if found is None:
            found = self._make(layer)
            if self._kept:
                self._made[layer] = found
        return found


class ShiftedSolver(ABC):
    """(M - alpha K)^-1, factorised or iterated; (Q, C) in, (Q, C) out."""

    @abstractmethod
    def solve(self, y: np.ndarray) -> np.ndarray:
        """x with (M - alpha K) x = y."""

    @abstractmethod
    def solve_transpose(self, y: np.ndarray) -> np.ndarray:
        """x with (M - alpha K)^T x = y."""


class Space(ABC):
    """P1 finite elements on a triangulated box in R^d.

    Arrays over nodes hold this process's nodes (Q of them; all nodes where there is one
    process); `sum` and `maximum` go over all processes.
    """

    backend: str
    mesh: Mesh
    processes: int = 1

    @property
    def dim(self) -> int:
        return self.mesh.dim

    @property
    def half_width(self) -> float:
        return self.mesh.half_width

    @property
    def spacing(self) -> float:
        """The mesh's spacing: that of a uniform grid with as many nodes."""
        return 2 * self.half_width / max(len(self.mesh.points) ** (1 / self.dim) - 1, 1)

    @property
    @abstractmethod
    def coefficient_points(self) -> np.ndarray:
        """Where drift and diffusion are sampled, shape (Q, d): the nodes."""

    @property
    def line(self) -> int:
        """Nodes in a line of the grid that `coefficient_points` are, last axis fastest; 0: they are none."""
        return 0

    @property
    @abstractmethod
    def lumped_mass(self) -> np.ndarray:
        """Ml_r = int phi_r dx, shape (Q,)."""

    @abstractmethod
    def mass(self, u: np.ndarray) -> np.ndarray:
        """M u with the consistent mass M_rs = int phi_r phi_s dx, shape (Q, C)."""

    def mass_defect(self, u: np.ndarray) -> np.ndarray:
        """(I - Ml^-1 M) u, shape (Q, C): what lumping the mass leaves out."""
        return u - self.mass(u) / self.lumped_mass[:, None]

    def roughness(self, u: np.ndarray) -> float:
        """sum Ml |(I - Ml^-1 M) u| / sum Ml |u - mean u| over nodes, the larger of the classes (Q, C).

        Of second order in the cells where u is smooth, about 1 where it alternates from node to node.
        """
        mass = self.lumped_mass[:, None]
        total = self.sum(np.array([mass.sum()]))
        mean = self.sum((mass * u).sum(axis=0)) / total
        variation = self.sum((mass * np.abs(u - mean)).sum(axis=0))
        rough = self.sum((mass * np.abs(self.mass_defect(u))).sum(axis=0))
        return float(np.max(rough / np.maximum(variation, np.finfo(float).tiny)))

    @abstractmethod
    def interpolation(self, points: np.ndarray) -> sp.csr_matrix:
        """Values of the basis at points (P, d): shape (P, Q). Raises InputError outside the box."""

    @abstractmethod
    def generator(self, drift: np.ndarray, diffusion: np.ndarray) -> Generator:
        """K for one layer: drift (Q, d); diffusion (Q, d) for a diagonal one, or (Q, d, d).

        Raises NonFiniteError where a value is not finite.
        """

    @abstractmethod
    def assemble(self, drift: np.ndarray, diffusion: np.ndarray) -> sp.csr_matrix:
        """K by the backend's own forms and quadrature: the check of `generator` (one process).

        drift (Q, d), diffusion (Q, d, d), both as P1 functions.
        """

    @abstractmethod
    def pullback(self, cotangent: np.ndarray, diagonal: bool) -> tuple[np.ndarray, np.ndarray]:
        """A generator's cotangent as derivatives by the nodal drift (Q, d) and diffusion.

        The diffusion's derivative has shape (Q, d) where `diagonal`, else (Q, d, d), symmetric.
        """

    def pull_into(self, cotangent: np.ndarray, drift: np.ndarray, diffusion: np.ndarray) -> None:
        """Write what `pullback` gives into drift (Q, d) and diffusion (Q, d[, d]), nodes contiguous."""
        drift[:], diffusion[:] = self.pullback(cotangent, diffusion.ndim == 2)

    def sum(self, local: np.ndarray) -> np.ndarray:
        """Sum over processes, elementwise."""
        return local

    def maximum(self, local: float) -> float:
        """Largest over processes."""
        return local


def check_coefficients(drift: np.ndarray, diffusion: np.ndarray, points: np.ndarray) -> None:
    """Raise NonFiniteError that names the first point where a coefficient is not finite."""
    for name, values in (("drift", drift), ("diffusion", diffusion)):
        good = np.isfinite(values.reshape(len(points), -1)).all(axis=1)
        if not good.all():
            where = ", ".join(f"{v:.3g}" for v in points[np.argmin(good)])
            raise NonFiniteError(f"{name} is not finite at ({where}): the weights are too large")


def components(dim: int, diagonal: bool) -> Sequence[tuple[int, int]]:
    """Index pairs (i, j), i <= j, of the diffusion's independent entries; the diagonal first."""
    pairs = [(i, i) for i in range(dim)]
    return pairs if diagonal else pairs + [(i, j) for i in range(dim) for j in range(i + 1, dim)]
