r"""Covariances C = S S^T by the structure of S (d x r): nothing larger than needed is formed.

All arrays are for a range of L layers at Q points, as jets are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Structure(ABC):
    """S of shape (d, r) at every layer and point: a layer's fluctuation is S e, e of r units."""

    #: torchsde's name for an SDE whose diffusion has this root
    noise_type: str

    @property
    @abstractmethod
    def units(self) -> int:
        """r, independent numbers of one layer and sample."""

    @abstractmethod
    def packed(self) -> Tensor:
        """C = S S^T, shape (L, Q, d) where it is diagonal, else (L, Q, d, d)."""

    @abstractmethod
    def root(self) -> Tensor:
        """A root of C: its diagonal (L, Q, d), or columns (L, Q, d, r)."""

    @abstractmethod
    def apply(self, units: Tensor) -> Tensor:
        """S e for units e of shape (L, Q, r): shape (L, Q, d)."""

    @abstractmethod
    def scaled(self, factors: Tensor) -> Structure:
        """factors (L,) times S."""

    @abstractmethod
    def dense(self) -> Tensor:
        """S itself, shape (L, Q, d, r)."""


@dataclass(frozen=True)
class Diagonal(Structure):
    """S = diag(entries), entries (L, Q, d): one number for each component."""

    entries: Tensor
    noise_type = "diagonal"

    @property
    def units(self) -> int:
        return self.entries.shape[-1]

    def packed(self) -> Tensor:
        return self.entries.square()

    def root(self) -> Tensor:
        return self.entries

    def apply(self, units: Tensor) -> Tensor:
        return self.entries * units

    def scaled(self, factors: Tensor) -> Diagonal:
        return Diagonal(factors[:, None, None] * self.entries)

    def dense(self) -> Tensor:
        return torch.diag_embed(self.entries)


@dataclass(frozen=True)
class RankOne(Structure):
    """S = v, v (L, Q, d): one number for all components."""

    v: Tensor
    noise_type = "scalar"

    @property
    def units(self) -> int:
        return 1

    def packed(self) -> Tensor:
        return self.v[..., :, None] * self.v[..., None, :]

    def root(self) -> Tensor:
        return self.v[..., None]

    def apply(self, units: Tensor) -> Tensor:
        return self.v * units

    def scaled(self, factors: Tensor) -> RankOne:
        return RankOne(factors[:, None, None] * self.v)

    def dense(self) -> Tensor:
        return self.v[..., None]


@dataclass(frozen=True)
class Factor(Structure):
    """S = V diag(z), V (L, d, m), z (L, Q, m): one number for each hidden unit."""

    V: Tensor
    z: Tensor
    noise_type = "general"

    @property
    def units(self) -> int:
        return self.z.shape[-1]

    def packed(self) -> Tensor:
        layers, dim, width = self.V.shape
        products = (self.V[:, :, None, :] * self.V[:, None, :, :]).reshape(layers, dim * dim, width)
        full = self.z.square() @ products.transpose(1, 2)
        return full.reshape(*full.shape[:2], dim, dim)

    def root(self) -> Tensor:
        return self.dense()

    def apply(self, units: Tensor) -> Tensor:
        return (self.z * units) @ self.V.transpose(1, 2)

    def scaled(self, factors: Tensor) -> Factor:
        return Factor(factors[:, None, None] * self.V, self.z)

    def dense(self) -> Tensor:
        return self.V[:, None] * self.z[:, :, None, :]


@dataclass(frozen=True)
class Entries(Structure):
    """(S e)_i = sum_j V_ij z_j e_ij, V (L, d, m), z (L, Q, m): one number for each weight; C is diagonal."""

    V: Tensor
    z: Tensor
    noise_type = "diagonal"

    @property
    def units(self) -> int:
        return self.V.shape[1] * self.V.shape[2]

    def packed(self) -> Tensor:
        return self.z.square() @ self.V.square().transpose(1, 2)

    def root(self) -> Tensor:
        return self.packed().sqrt()

    def apply(self, units: Tensor) -> Tensor:
        layers, dim, width = self.V.shape
        return torch.einsum("lij,lqj,lqij->lqi", self.V, self.z, units.reshape(layers, -1, dim, width))

    def scaled(self, factors: Tensor) -> Entries:
        return Entries(factors[:, None, None] * self.V, self.z)

    def dense(self) -> Tensor:
        layers, dim, width = self.V.shape
        rows = self.V[:, None] * self.z[:, :, None, :]
        full = rows.new_zeros(*rows.shape[:2], dim, dim, width)
        index = torch.arange(dim)
        full[:, :, index, index] = rows
        return full.reshape(layers, -1, dim, dim * width)


def packed(covariance: Structure | Tensor) -> Tensor:
    """A covariance as a tensor, (L, Q, d) or (L, Q, d, d)."""
    return covariance if isinstance(covariance, Tensor) else covariance.packed()
