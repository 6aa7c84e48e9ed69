"""A training problem: data, network, noise, loss."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from kolmo.data import Dataset
from kolmo.errors import InputError
from kolmo.loss import Logistic, Loss
from kolmo.network import LayeredNetwork
from kolmo.noise import NoNoise
from kolmo.noise.base import Noise


@dataclass
class Problem:
    r"""Minimise J(theta) = 1/M sum_i E[Phi_{y_i}(X_L) | X_0 = x_i] over the network's weights.

    Raises InputError where data, network and loss differ in dimension.
    """

    data: Dataset
    network: LayeredNetwork
    noise: Noise = field(default_factory=NoNoise)
    loss: Loss = field(default_factory=Logistic)

    def __post_init__(self) -> None:
        if self.data.dim != self.network.dim:
            raise InputError(
                f"problem: data have {self.data.dim} features, the network takes {self.network.dim}"
            )
        self.loss(self.data.points[:1], 0)  # says where it takes other features

    @property
    def controls(self) -> tuple[Tensor, ...]:
        """What training can change besides the weights: the horizon, the noise's strengths, the loss's
        parameters, where they require gradients."""
        return (*self.network.controls, *self.noise.controls, *self.loss.controls)

    def with_network(self, network: LayeredNetwork) -> Problem:
        """The same problem with other weights."""
        return Problem(self.data, network, self.noise, self.loss)

    def without_noise(self) -> Problem:
        """The same problem with the noise switched off."""
        return Problem(self.data, self.network, NoNoise(), self.loss)
