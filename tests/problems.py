"""A zoo of small problems, meshes and closed forms for the tests."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import Tensor

import kolmo
from kolmo import data, noise
from kolmo.loss import LeastSquares, Logistic
from kolmo.network import LayeredNetwork, ResidualNetwork
from kolmo.noise.base import Noise
from kolmo.pde.mesh import Mesh, box_mesh
from kolmo.pde.space import Space

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent


# ------------------------------------------------------------------ data and networks


def points(dim: int, samples: int = 40, seed: int = 0) -> data.Dataset:
    """An interval, moons, or moons with a third Gaussian feature."""
    if dim == 1:
        return data.interval(samples, seed=seed)
    moons = data.moons(samples, seed=seed)
    if dim == 2:
        return moons
    generator = torch.Generator().manual_seed(seed)
    extra = 0.4 * torch.randn(samples, dim - 2, generator=generator, dtype=torch.float64)
    return data.Dataset(torch.cat([moons.points, extra], dim=1), moons.labels)


def cluster(dim: int, radius: float, samples: int = 6, seed: int = 0) -> data.Dataset:
    """A few points uniform in [-radius, radius]^d with alternating labels."""
    generator = torch.Generator().manual_seed(seed)
    x = radius * (2 * torch.rand(samples, dim, generator=generator, dtype=torch.float64) - 1)
    return data.Dataset(x, torch.arange(samples) % 2)


def trained_size(
    dim: int, depth: int = 10, width: int = 8, std: float = 0.35, activation: str = "tanh", seed: int = 1
) -> ResidualNetwork:
    """Random weights of the size that training reaches: W, V of standard deviation `std`, b 0.2."""
    generator = torch.Generator().manual_seed(seed)

    def normal(scale: float, *shape: int) -> Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    W, b, V = normal(std, depth, width, dim), normal(0.2, depth, width), normal(std, depth, dim, width)
    return ResidualNetwork.from_weights(W, b, V, activation=activation)


def problem(
    dim: int, noise: Noise | None = None, depth: int = 10, samples: int = 40, **keys: Any
) -> kolmo.Problem:
    """Dropout (by default) in a network of trained size, logistic loss."""
    model = noise_default() if noise is None else noise
    return kolmo.Problem(points(dim, samples), trained_size(dim, depth, **keys), model, Logistic())


def noise_default() -> Noise:
    return noise.BernoulliDropout(0.8)


class PlainNetwork(LayeredNetwork):
    """A residual network's block without its closed-form jet, so that autograd has to find it."""

    def __init__(self, inner: ResidualNetwork) -> None:
        super().__init__(inner.dim, inner.depth, inner.horizon)
        self.inner = inner
        self.twice_differentiable = inner.twice_differentiable

    def block(self, layer: int, x: Tensor) -> Tensor:
        return self.inner.block(layer, x)


# ------------------------------------------------------------------ every noise

#: every kind of noise, with schedules for networks of depth DEPTH
DEPTH = 4
NOISES: dict[str, Noise] = {
    "none": noise.NoNoise(), "dropout": noise.BernoulliDropout(0.8), "dropout-1": noise.BernoulliDropout(1),
    "dropout-line": noise.BernoulliDropout({"first": 0.9, "last": 0.4}),
    "hidden": noise.HiddenDropout(0.7), "hidden-list": noise.HiddenDropout([0.9, 0.6, 0.8, 0.7]),
    "dropconnect": noise.DropConnect(0.6), "dropconnect-decay": noise.DropConnect({"last": 0.5}),
    "depth": noise.StochasticDepth(0.8), "depth-decay": noise.StochasticDepth({"last": 0.5}),
    "depth-test-time": noise.StochasticDepth(0.7, scaling="test_time"),
    "depth-decay-test-time": noise.StochasticDepth({"last": 0.4}, scaling="test_time"),
    "depth-batch": noise.StochasticDepth(0.6, per="batch"),
    "gaussian-dropout": noise.GaussianDropout(0.5),
    "gaussian-dropout-list": noise.GaussianDropout([0.1, 0.0, 0.6, 0.4]),
    "uniform": noise.UniformNoise(0.9), "uniform-decay": noise.UniformNoise({"last": 1.5}),
    "injection": noise.GaussianInjection(0.5), "injection-0": noise.GaussianInjection(0),
    "injection-line": noise.GaussianInjection({"first": 0.2, "last": 0.6}), "shake": noise.ShakeShake(),
    "dropout+injection": noise.Composition([noise.BernoulliDropout(0.8), noise.GaussianInjection(0.3)]),
    "depth-test-time+injections": noise.Composition(
        [{"kind": "gaussian_injection", "std": 0.2}, noise.StochasticDepth({"last": 0.6}, "test_time"),
         noise.GaussianInjection([0.1, 0.4, 0.2, 0.3])]),
    "shake+injection": noise.Composition([noise.ShakeShake(), noise.GaussianInjection({"last": 0.5})]),
    "depth-batch+injection": noise.Composition(
        [noise.StochasticDepth(0.7, per="batch"), noise.GaussianInjection(0.2)]),
}  # fmt: skip


def strength(value: Any, layer: int, depth: int, neutral: float) -> float:
    """A schedule: the decay p_l = n - l/L (n - p_L), l = 1, ..., L, from neutral n, or a line, or a list."""
    if isinstance(value, dict) and "first" in value:
        return float(np.interp(layer, [0, depth - 1], [value["first"], value["last"]]))
    if isinstance(value, dict):
        return neutral - (layer + 1) / depth * (neutral - value["last"])
    return value[layer] if isinstance(value, list) else value


def moments(model: Noise, layer: int, depth: int, M: np.ndarray, V: np.ndarray) -> tuple[float, Any, Any]:
    """The table of noises: the ratio m / f, and E[C] and D for f = V z and M = E[z z^T], (..., m, m)."""
    if isinstance(model, noise.Composition):
        ratios, C, D = zip(*(moments(part, layer, depth, M, V) for part in model.parts), strict=True)
        return float(np.prod(ratios)), sum(C), sum(D)
    keys = {"keep": 1.0, "std": 0.0, "half_width": 0.0, "scaling": "", **model.settings()}
    p, s, w = (strength(keys[k], layer, depth, float(k == "keep")) for k in ("keep", "std", "half_width"))
    dim, width = V.shape
    full, hidden = V @ M @ V.T, V @ (M * np.eye(width)) @ V.T  # E[f f^T] and V diag(E z_j^2) V^T
    branches = 2 * V * np.repeat([1, -1], [width // 2, width - width // 2])  # f1 - f2 = branches z
    test_time = keys["scaling"] == "test_time"
    C = {
        "none": 0 * full,
        "bernoulli_dropout": (1 - p) / p * full * np.eye(dim),
        "hidden_dropout": (1 - p) / p * hidden,
        "dropconnect": (1 - p) / p * hidden * np.eye(dim),
        "stochastic_depth": (p * (1 - p) if test_time else (1 - p) / p) * full,
        "gaussian_dropout": s**2 * full * np.eye(dim),
        "uniform_noise": w**2 / 3 * full * np.eye(dim),
        "shake_shake": branches @ M @ branches.T / 12,
        "gaussian_injection": 0 * full,
    }[model.kind]
    return p if test_time else 1.0, C, float(model.kind == "gaussian_injection") * s**2 * np.eye(dim)


# ------------------------------------------------------------------ affine networks and their moments


def affine_network(dim: int, depth: int, pull: float = 0.8, spread: float = 0.3) -> ResidualNetwork:
    """f_k(x) = A_k x + c_k as V (W x + b) with identity activation; A_k = -pull I + spread.

    A and c depend on time t = k/L through smooth functions, so that depths can be compared. The
    width is even: the hidden units have two halves.
    """
    rng = np.random.default_rng(5)
    base, tilt, shift = (rng.uniform(-1, 1, shape) for shape in ((dim, dim), (dim, dim), dim))
    W = rng.standard_normal((2 * (dim // 2 + 1), dim))
    weights = []
    for k in range(depth):
        t = (k + 0.5) / depth
        A = -pull * np.eye(dim) + spread * (base + np.sin(2 * t) * tilt)
        V = A @ np.linalg.pinv(W)
        b = np.linalg.pinv(V) @ (spread * shift * (1 + t))
        weights.append((W, b, V))
    W_all, b_all, V_all = (torch.tensor(np.stack(w)) for w in zip(*weights, strict=True))
    return ResidualNetwork.from_weights(W_all, b_all, V_all, activation="identity")


def affine_maps(network: ResidualNetwork) -> list[tuple[np.ndarray, np.ndarray]]:
    """(Z_k, V_k) of every layer: hidden units z = Z (1, x) and f = V z, identity activation."""
    assert network.activation.name == "identity"
    W, b, V = (w.detach().numpy() for w in (network.W, network.b, network.V))
    return [(np.hstack([b[k][:, None], W[k]]), V[k]) for k in range(network.depth)]


def quadratic_loss(moments: np.ndarray, labels: np.ndarray) -> float:
    """J = 1/M sum_i 1/2 E (x_1 - t_i)^2 from the second moments E[z z^T], z = (1, x), of each point."""
    target = 2.0 * labels - 1
    return float(np.mean(0.5 * (moments[:, 1, 1] - 2 * target * moments[:, 0, 1] + target**2)))


def _start(problem: kolmo.Problem) -> np.ndarray:
    z = np.hstack([np.ones((len(problem.data), 1)), problem.data.points.numpy()])
    return z[:, :, None] * z[:, None, :]


def chain_loss(problem: kolmo.Problem) -> float:
    """Exact J of the chain: affine block, quadratic loss; its first two moments close for every noise.

    X' = X + h m(X) + zeta, Cov[zeta | X] = h^2 C(X) + h D, m = r f, f = F z, z = (1, x), so that
    S' = G S G^T + h^2 C(S) + h D,   G = I + h r (0; F).
    """
    assert isinstance(problem.loss, LeastSquares) and isinstance(problem.network, ResidualNetwork)
    h, depth, S = problem.network.step, problem.network.depth, _start(problem)
    for k, (Z, V) in enumerate(affine_maps(problem.network)):
        ratio, C, D = moments(problem.noise, k, depth, Z @ S @ Z.T, V)
        G = np.eye(problem.network.dim + 1)
        G[1:] += h * ratio * V @ Z
        S = G @ S @ G.T
        S[:, 1:, 1:] += h * h * C + h * D
    return quadratic_loss(S, problem.data.labels.numpy())


def sde_loss(problem: kolmo.Problem, order: int) -> float:
    """Exact J of the modified equation for an affine block and every noise.

    dX = (B X + e) dt + a^{1/2} dW on each layer: with m = A x + c it is B = A - h/2 A^2, e = c - h/2 A c
    (at order 1 without h/2) and a = h C(x) + (I - h/2 A) D (I - h/2 A)^T, so that the moments
    S = E[z z^T], z = (1, x), solve the linear ODE S' = G S + S G^T + h C(S) + a_D.
    """
    assert isinstance(problem.loss, LeastSquares) and isinstance(problem.network, ResidualNetwork)
    h, depth, S = problem.network.step, problem.network.depth, _start(problem)
    half = 0.5 * h if order == 2 else 0.0
    n = problem.network.dim + 1
    for k, (Z, V) in enumerate(affine_maps(problem.network)):
        basis = np.eye(n * n).reshape(-1, n, n)  # C is linear in S
        ratio, C, D = moments(problem.noise, k, depth, Z @ basis @ Z.T, V)
        F = ratio * V @ Z
        correction = np.eye(n - 1) - half * F[:, 1:]
        G, forcing, spread = np.zeros((n, n)), np.zeros((n, n)), np.zeros((n * n, n, n))
        G[1:], forcing[1:, 1:], spread[:, 1:, 1:] = correction @ F, correction @ D @ correction.T, h * C
        system = np.zeros((n * n + 1, n * n + 1))
        system[:-1, :-1] = np.kron(G, np.eye(n)) + np.kron(np.eye(n), G) + spread.reshape(n * n, n * n).T
        system[:-1, -1] = forcing.ravel()
        flow = expm(h * system)
        S = (S.reshape(-1, n * n) @ flow[:-1, :-1].T + flow[:-1, -1]).reshape(-1, n, n)
    return quadratic_loss(S, problem.data.labels.numpy())


# ------------------------------------------------------------------ meshes and coefficients


def perturbed_mesh(dim: int, cells: int, half_width: float, seed: int = 0) -> Mesh:
    """The Kuhn mesh with interior vertices moved by up to 12% of the spacing in each direction."""
    mesh = box_mesh(dim, cells, half_width)
    move = 0.12 * (2 * half_width / cells) * np.random.default_rng(seed).uniform(-1, 1, mesh.points.shape)
    inside = (np.abs(mesh.points) < half_width * (1 - 1e-9)).all(axis=1)
    return Mesh(mesh.points + move * inside[:, None], mesh.cells)


def volumes(mesh: Mesh) -> np.ndarray:
    """Signed volume of every simplex, from the edge vectors at its first vertex."""
    corners = mesh.points[mesh.cells]
    return np.linalg.det(corners[:, 1:] - corners[:, :1]) / [1, 1, 2, 6][mesh.dim]


def interior(space: Space, margin: float = 1e-9) -> np.ndarray:
    """Nodes with |x|_inf < (1 - margin) R."""
    return (np.abs(space.coefficient_points) < space.half_width * (1 - margin)).all(axis=1)


def random_coefficients(space: Space, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Independent nodal drift (Q, d) and symmetric positive semidefinite diffusion (Q, d, d)."""
    rng = np.random.default_rng(seed)
    count, dim = space.coefficient_points.shape
    root = rng.standard_normal((count, dim, dim))
    return rng.standard_normal((count, dim)), root @ root.transpose(0, 2, 1)


def smooth_coefficients(
    space: Space, drift: float = 0.6, diffusion: float = 0.05
) -> tuple[np.ndarray, np.ndarray]:
    """A smooth drift and a full diffusion, both tapered at the box."""
    from kolmo.modified import Coefficients
    from kolmo.pde.boundary import Taper

    x = torch.from_numpy(space.coefficient_points)
    wave = torch.stack([torch.sin(x.sum(dim=1) + i) for i in range(space.dim)], dim=1)
    full = torch.eye(space.dim).to(x) + 0.5 * wave[:, :, None] * wave[:, None, :]
    free = Coefficients((drift * wave)[None], (diffusion * full)[None])
    tapered = Taper(space.coefficient_points, space.half_width, space.spacing)(free)
    return tapered.drift[0].numpy(), tapered.diffusion[0].numpy()


# ------------------------------------------------------------------ rates


def fitted_order(sizes: Any, errors: Any) -> float:
    """Least-squares slope of log error over log size; positive where errors fall with size."""
    sizes, errors = np.asarray(sizes, dtype=float), np.asarray(errors, dtype=float)
    assert (errors > 0).all(), f"errors {errors} leave nothing to fit"
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


# ------------------------------------------------------------------ example networks


def case_folder(name: str) -> Path:
    """A case directory below $KOLMO_CASES or ../shared/cases; skips, visibly, where it is absent."""
    root = Path(os.environ.get("KOLMO_CASES", ROOT.parent / "shared" / "cases"))
    if not (root / name / "problem.toml").is_file():
        pytest.skip(f"no case {name} below {root}")
    return root / name


def load_case(name: str) -> tuple[kolmo.Problem, dict[str, Any]]:
    """A case's problem and its reference.json."""
    folder = case_folder(name)
    settings = tomllib.loads((folder / "problem.toml").read_text())
    with np.load(folder / settings["network"]["weights"]) as weights:
        network = ResidualNetwork.from_weights(
            *(torch.from_numpy(weights[key]) for key in ("W", "b", "V")),
            horizon=settings["network"]["horizon"],
            activation=settings["network"]["activation"],
        )
    loaded = kolmo.Problem(
        data.from_csv(folder / settings["data"]["points"]),
        network,
        noise.from_settings(settings["noise"]),
        Logistic(settings["loss"]["scale"]),
    )
    return loaded, json.loads((folder / "reference.json").read_text())
