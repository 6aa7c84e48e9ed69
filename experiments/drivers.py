r"""One objective, many optimisers: how `Objective` is handed to torch, scipy and PETSc's TAO.

A driver takes an objective, a start (n,) and `Options`, and gives back where its method ended. To a library
an objective is a function of one vector: `objective.value_and_gradient(theta)` and, where it asks for second
derivatives, `objective.hessian(theta)`, which makes v -> H v once for each theta. Weights that the equation
refuses (InfeasibleError) are infinitely dear to scipy and PETSc, whose steps then become shorter; torch has
no word for them, and the refusal ends the descent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from kolmo.control import Objective, lbfgs, newton
from kolmo.errors import InfeasibleError, MissingBackendError

Product = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Options:
    """What all methods are told.

    tolerance: on the gradient's Euclidean norm. Libraries that look at its largest component get a tenth,
    which is no promise with more than 100 weights. iterations: at most. radius: of the first trust region, in
    units of the weights. inner: products of one Newton step, at most.
    """

    tolerance: float = 1e-6
    iterations: int = 500
    radius: float = 1.0
    inner: int = 50


Driver = Callable[[Objective, np.ndarray, Options], np.ndarray]


# ------------------------------------------------------------------ our own


def own_lbfgs(objective: Objective, start: np.ndarray, options: Options) -> np.ndarray:
    return lbfgs(objective, start, iterations=options.iterations, tolerance=options.tolerance).theta


def own_newton(objective: Objective, start: np.ndarray, options: Options) -> np.ndarray:
    return newton(
        objective,
        start,
        iterations=options.iterations,
        tolerance=options.tolerance,
        radius=options.radius,
        inner=options.inner,
    ).theta


# ------------------------------------------------------------------ torch


def _by_torch(
    make: Callable[[list[Tensor]], torch.optim.Optimizer],
    objective: Objective,
    start: np.ndarray,
    steps: int,
) -> np.ndarray:
    """A parameter of all weights, and a closure that leaves the gradient in it."""
    theta = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimiser = make([theta])

    def closure() -> float:
        value, gradient = objective.value_and_gradient(theta.detach().numpy().copy())
        theta.grad = torch.from_numpy(gradient)
        return value

    for _ in range(steps):
        optimiser.step(closure)
    return theta.detach().numpy()


def torch_adam(objective: Objective, start: np.ndarray, options: Options) -> np.ndarray:
    """With the rate of the main job's Adam; it has no end of its own."""
    return _by_torch(lambda p: torch.optim.Adam(p, lr=0.02), objective, start, options.iterations)


def torch_sgd(objective: Objective, start: np.ndarray, options: Options) -> np.ndarray:
    """Gradient descent with momentum: the gradient is exact, nothing is stochastic."""
    return _by_torch(lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9), objective, start, options.iterations)


def torch_lbfgs(objective: Objective, start: np.ndarray, options: Options) -> np.ndarray:
    def make(parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(
            parameters,
            max_iter=options.iterations,
            max_eval=2 * options.iterations,
            tolerance_grad=0.1 * options.tolerance,
            tolerance_change=0.0,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

    return _by_torch(make, objective, start, 1)


# ------------------------------------------------------------------ scipy


def _refusable(objective: Objective, theta: np.ndarray) -> tuple[float, np.ndarray]:
    """Value and gradient; infinite where the equation refuses the weights."""
    try:
        return objective.value_and_gradient(theta)
    except InfeasibleError:
        return np.inf, np.zeros_like(theta)


class _Products:
    """(theta, v) -> H v, the Hessian made once for each theta."""

    def __init__(self, objective: Objective) -> None:
        self._objective, self._at, self._product = objective, b"", lambda v: v

    def __call__(self, theta: np.ndarray, v: np.ndarray) -> np.ndarray:
        if theta.tobytes() != self._at:
            self._product, self._at = self._objective.hessian(theta), theta.tobytes()
        return self._product(v)


def _by_scipy(
    method: str, objective: Objective, start: np.ndarray, options: dict[str, float], second: bool = False
) -> np.ndarray:
    found = minimize(
        lambda theta: _refusable(objective, theta),
        start,
        jac=True,
        hessp=_Products(objective) if second else None,
        method=method,
        options=options,
    )
    return np.asarray(found.x)


def scipy_lbfgs(objective: Objective, start: np.ndarray, options: Options) -> np.ndarray:
    stop = {"gtol": 0.1 * options.tolerance, "ftol": 0.0, "maxiter": options.iterations}
    return _by_scipy("L-BFGS-B", objective, start, stop)


def scipy_cg(objective: Objective, start: np.ndarray, options: Options) -> np.ndarray:
    stop = {"gtol": 0.1 * options.tolerance, "maxiter": options.iterations}
    return _by_scipy("CG", objective, start, stop)


def scipy_newton_cg(objective: Objective, start: np.ndarray, options: Options) -> np.ndarray:
    """A line search along truncated Newton directions; it ends by the length of a step."""
    stop = {"xtol": 1e-3 * options.tolerance, "maxiter": options.iterations}
    return _by_scipy("Newton-CG", objective, start, stop, second=True)


def scipy_krylov(objective: Objective, start: np.ndarray, options: Options) -> np.ndarray:
    """The trust region of GLTR (Gould, Lucidi, Roma, Toint, SIAM J. Optim. 9, 1999)."""
    stop = {
        "gtol": options.tolerance,
        "maxiter": options.iterations,
        "initial_trust_radius": options.radius,
        "max_trust_radius": 10 * options.radius,
    }
    return _by_scipy("trust-krylov", objective, start, stop, second=True)


# ------------------------------------------------------------------ PETSc


def _by_tao(kind: str, objective: Objective, start: np.ndarray, options: Options) -> np.ndarray:
    """One of TAO's methods; a Hessian is a shell that multiplies. MissingBackendError without petsc4py."""
    try:
        import petsc4py

        petsc4py.init(["kolmo", "-no_signal_handler"])  # Ctrl-C and SIGTERM are ours
        from petsc4py import PETSc
    except ImportError as error:
        raise MissingBackendError(
            f"petsc4py: {error}; Debian's python3-petsc4py and python3-dolfinx have it"
        ) from error

    class Shell:
        product: Product

        def mult(self, matrix: object, x: PETSc.Vec, y: PETSc.Vec) -> None:
            y.setArray(self.product(x.getArray(readonly=True).copy()))

    def value_and_gradient(tao: object, x: PETSc.Vec, gradient: PETSc.Vec) -> float:
        value, found = _refusable(objective, x.getArray(readonly=True).copy())
        gradient.setArray(found)
        return value

    def hessian(tao: object, x: PETSc.Vec, matrix: object, preconditioner: object) -> None:
        shell.product = objective.hessian(x.getArray(readonly=True).copy())

    shell, one = Shell(), PETSc.COMM_SELF
    theta = PETSc.Vec().createWithArray(start.copy(), comm=one)
    tao = PETSc.TAO().create(one)
    tao.setType(kind)
    tao.setObjectiveGradient(value_and_gradient, theta.duplicate())
    tao.setTolerances(gatol=options.tolerance, grtol=0.0, gttol=0.0)
    tao.setMaximumIterations(options.iterations)
    tao.setMaximumFunctionEvaluations(4 * options.iterations)
    if kind == "ntr":
        matrix = PETSc.Mat().createPython((len(start), len(start)), shell, comm=one)
        matrix.setUp()
        tao.setHessian(hessian, matrix, matrix)
        tao.setInitialTrustRegionRadius(options.radius)
        tao.getKSP().setTolerances(rtol=0.1, max_it=options.inner)
    tao.setSolution(theta)
    try:
        tao.solve()
    except PETSc.Error as error:  # petsc4py wraps, from 3.25 at the latest, what a callback raises
        cause: BaseException = error
        while isinstance(cause, PETSc.Error) and cause.__cause__ is not None:
            cause = cause.__cause__
        raise cause from None
    return np.asarray(theta.getArray()).copy()


def tao_lmvm(objective: Objective, start: np.ndarray, options: Options) -> np.ndarray:
    return _by_tao("lmvm", objective, start, options)


def tao_ntr(objective: Objective, start: np.ndarray, options: Options) -> np.ndarray:
    """Newton's method in a trust region, by conjugate gradients (Steihaug)."""
    return _by_tao("ntr", objective, start, options)


#: what minimises an objective from given weights, by the name that tables show
DRIVERS: dict[str, Driver] = {
    "L-BFGS": own_lbfgs,
    "Newton-Krylov": own_newton,
    "torch Adam": torch_adam,
    "torch SGD": torch_sgd,
    "torch LBFGS": torch_lbfgs,
    "scipy L-BFGS-B": scipy_lbfgs,
    "scipy CG": scipy_cg,
    "scipy Newton-CG": scipy_newton_cg,
    "scipy trust-krylov": scipy_krylov,
    "TAO lmvm": tao_lmvm,
    "TAO ntr": tao_ntr,
}
