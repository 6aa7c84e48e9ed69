"""Gaussian increments in place of a noise's own, where it has too many outcomes, and what they are off by."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kolmo.errors import InputError
from kolmo.network import LayeredNetwork
from kolmo.noise.base import MOST_OUTCOMES, Outcomes
from kolmo.noise.law import Normal
from kolmo.noise.structure import packed
from kolmo.problem import Problem


def gaussian_outcomes(
    problem: Problem, network: LayeredNetwork, layer: int, x: Tensor, gauss: int
) -> Outcomes:
    """Gaussian increments with the noise's mean h m and covariance h^2 C + h D, by a product rule."""
    noise, h = problem.noise, network.step
    jet = network.jet(x, slice(layer, layer + 1))
    base = h * noise.mean(jet).value[0]
    dim = x.shape[1]
    C, D = noise.covariance(jet), noise.diffusion(jet)
    full = base.new_zeros(len(x), dim, dim)
    if C is not None:
        spread = packed(C)[0]
        full = full + h * h * (torch.diag_embed(spread) if spread.ndim == 2 else spread)
    if D is not None:
        full = full + h * D[0]
    # a root of a singular covariance has no derivative: lifted by less than rounding does to J
    lift = 1e-12 * full.diagonal(dim1=-2, dim2=-1).sum(-1).detach() + 1e-24
    factor, failed = torch.linalg.cholesky_ex(full + lift[:, None, None] * torch.eye(dim).to(full))
    # weights that are not finite are the recursion's to name, and an accelerator is not to be waited for
    factor = torch.where((failed == 0)[:, None, None], factor, torch.nan)
    values, weights = Normal(1.0).points(gauss)
    if gauss**dim > MOST_OUTCOMES:
        raise InputError(f"gauss: {gauss} points in {dim} dimensions are more than {MOST_OUTCOMES} outcomes")
    index = np.indices((gauss,) * dim).reshape(dim, -1).T
    return Outcomes(base, factor, values[index], weights[index].prod(axis=1))


def regressed(values: np.ndarray, jumps: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Means (N,) of samples (S, N), jumps (S, N, d) as control variates with covariance (N, d, d)."""
    rows, columns = np.triu_indices(jumps.shape[2])
    variance = np.einsum("nii->ni", covariance)
    # a component that hardly varies must not become a feature of its lifted variance
    scale = np.sqrt(np.maximum(variance, 1e-8 * variance.sum(axis=1, keepdims=True)) + 1e-300)
    z = jumps / scale
    known = (covariance / scale[:, :, None] / scale[:, None, :])[:, rows, columns]
    features = np.concatenate([z, z[..., rows] * z[..., columns] - known], axis=2)  # of mean zero
    features = np.concatenate([np.ones((*z.shape[:2], 1)), features], axis=2).transpose(1, 0, 2)
    gram = features.transpose(0, 2, 1) @ features
    # features may be dependent (a noise of rank one): the smallest solution will do
    solved = np.linalg.pinv(gram, rcond=1e-8, hermitian=True) @ (
        features.transpose(0, 2, 1) @ values.T[..., None]
    )
    return np.asarray(solved[:, 0, 0])
