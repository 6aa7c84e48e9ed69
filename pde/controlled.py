r"""J where the horizon or the loss's parameters are controls too.

With h J depends on h b and h a alone: the march is given (h / |h|) b and (h / |h|) a, |h| the number. With
the terminal values,

    dJ/dPhi = rho(T) + (what the clip took, where Phi is largest and where it is smallest):

mass that leaves the density at a clipped entry has been given to the bound that u was clipped to. With what
is left of the mass, and with J = <u(0), mu>, class by class,

    m_above + m_below = <1, mu> - <1, rho(T)>,   m_above max Phi + m_below min Phi = J - <Phi, rho(T)>.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kolmo.errors import InputError
from kolmo.modified import Coefficients
from kolmo.network import LayeredNetwork
from kolmo.pde import march
from kolmo.pde.checkpointed import Checkpointed
from kolmo.pde.march import Trajectory

if TYPE_CHECKING:
    from kolmo.pde.kolmogorov import BackwardKolmogorov


def controlled_loss(equation: BackwardKolmogorov, network: LayeredNetwork) -> Tensor:
    """J, differentiable by weights, horizon, noise strengths and the loss's parameters.

    Raises InputError under several processes, and else as `BackwardKolmogorov.expected_loss`.
    """
    if equation.space.processes > 1:
        raise InputError("controls: the horizon and the loss's parameters are controls in one process only")
    drift, diffusion, terminal = controlled_coefficients(equation, equation.coefficients(network), network)
    found: Tensor = _ControlledLoss.apply(drift, diffusion, terminal, equation, network.step)
    return found


def controlled_coefficients(
    equation: BackwardKolmogorov, found: Coefficients, network: LayeredNetwork
) -> tuple[Tensor, Tensor, Tensor]:
    """Drift, diffusion and terminal values (Q, 2) that carry all derivatives of J."""
    unit = network.time_step / network.step if network.controls else 1.0
    return unit * found.drift, unit * found.diffusion, equation.terminal_losses()


class _ControlledLoss(torch.autograd.Function):
    """(b, a, Phi) -> J by the march; backward: the exact discrete adjoint."""

    @staticmethod
    def forward(
        ctx: Any,
        drift: Tensor,
        diffusion: Tensor,
        terminal: Tensor,
        equation: BackwardKolmogorov,
        step: float,
    ) -> Tensor:
        at = Coefficients(drift, diffusion).at
        value, ctx.marched = equation.march_within(at, len(drift), step, True)
        ctx.equation, ctx.terminal = equation, terminal.numpy()
        ctx.shapes = drift.shape, diffusion.shape
        return drift.new_tensor(value)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        equation: BackwardKolmogorov = ctx.equation
        d_drift, d_diffusion = (np.empty(shape) for shape in ctx.shapes)

        def collect(layer: int, cotangent: np.ndarray) -> None:
            parts = equation.space.pullback(cotangent, d_diffusion.ndim == 3)
            d_drift[layer], d_diffusion[layer] = parts

        marched: Checkpointed | Trajectory = ctx.marched
        if isinstance(marched, Checkpointed):
            rho = marched.adjoint(equation.initial, collect)
        else:
            rho = march.adjoint(marched, equation.initial, collect)
        d_terminal = rho + _clipped(ctx.terminal, rho, marched.initial, equation.initial)
        found = (torch.from_numpy(d) for d in (d_drift, d_diffusion, d_terminal))
        return *(scale * d for d in found), None, None  # type: ignore[return-value]


def _clipped(phi: np.ndarray, rho: np.ndarray, u: np.ndarray, mu: np.ndarray) -> np.ndarray:
    """The mass that the clip took, at the extreme nodes of Phi; all (Q, 2)."""
    found = np.zeros_like(phi)
    for c in range(phi.shape[1]):
        top, bottom = int(np.argmax(phi[:, c])), int(np.argmin(phi[:, c]))
        lost = float(mu[:, c].sum() - rho[:, c].sum())
        paid = float(u[:, c] @ mu[:, c] - phi[:, c] @ rho[:, c])
        width = float(phi[top, c] - phi[bottom, c])
        above = (paid - lost * float(phi[bottom, c])) / width if width > 0 else 0.0
        found[top, c] += above
        found[bottom, c] += lost - above
    return found
