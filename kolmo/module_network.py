r"""Any torch module as the vector field of a residual network.

    X_{k+1} = X_k + h f(X_k, t_k) + noise,     t_k = k h,     f = module(x, t)

is forward Euler for dX = f(X, t) dt, so a field written for an ordinary differential equation is a network of
any depth. Within a layer the field is frozen at t_k: the modified equation has the derivatives by x only, and
these are found by forward-mode automatic differentiation, `network.AutomaticJet`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kolmo.errors import InputError, NonFiniteError
from kolmo.network import LayeredNetwork

__all__ = ["FieldNetwork"]

#: modules with a kink or a jump: their second derivative is no function
_KINKED = (
    nn.CELU, nn.ELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.PReLU,
    nn.ReLU, nn.ReLU6, nn.RReLU, nn.SELU, nn.Softshrink, nn.Softsign, nn.Threshold,
)  # fmt: skip
#: points of [-2, 2]^d at which a module is tried
_TRIED = 16


class FieldNetwork(LayeredNetwork):
    """Residual network whose block in layer k is module(x, t_k), t_k = k h in units of time.

    module: forward(x, t) of points x (N, d) and a time t (), both of the same type: shape (N, d), length per
    unit time, each row of its own point alone. Its parameters are the network's, float64. horizon: as in
    `LayeredNetwork`. twice_differentiable: whether f has two derivatives by x, as order 2 demands; by default
    where no layer of the module is known to have a kink.

    The module is tried on a few points. Raises InputError that says what is wrong: parameters of another
    type, an output of another shape or type, not finite, random, or dependent on the other points of the
    batch. A value that is not finite later on raises NonFiniteError.
    """

    def __init__(
        self,
        module: nn.Module,
        dim: int,
        depth: int,
        horizon: float | Tensor = 1.0,
        *,
        twice_differentiable: bool | None = None,
    ) -> None:
        super().__init__(dim, depth, horizon)
        if not isinstance(module, nn.Module):
            raise InputError(f"module: {type(module).__name__} is no torch.nn.Module")
        self.module = module
        kinked = any(isinstance(part, _KINKED) for part in module.modules())
        self.twice_differentiable = not kinked if twice_differentiable is None else twice_differentiable
        self._check_types()
        self._try()

    def time(self, layer: int) -> Tensor:
        """t_k = k h of a layer, a float64 scalar; differentiable where the horizon is a control."""
        return torch.as_tensor(self.time_step * layer, dtype=torch.float64)

    def block(self, layer: int, x: Tensor) -> Tensor:
        value = self._call(layer, x)
        if not bool(torch.isfinite(value).all()):
            raise NonFiniteError(f"module: its value in layer {layer} is not finite", layer)
        return value

    def _call(self, layer: int, x: Tensor) -> Tensor:
        value: Tensor = self.module(x.reshape(-1, self.dim), self.time(layer).to(x))
        return value.reshape(x.shape)

    def _check_types(self) -> None:
        for name, weight in (*self.module.named_parameters(), *self.module.named_buffers()):
            if weight.dtype != torch.float64 and (weight.is_floating_point() or weight.is_complex()):
                raise InputError(f"module: {name} is {weight.dtype}, expected float64; call module.double()")

    def _try(self) -> None:
        x = torch.quasirandom.SobolEngine(self.dim, seed=0).draw(_TRIED).to(torch.float64) * 4 - 2
        t = self.time(self.depth - 1).detach()
        with torch.no_grad():
            try:
                value, again, alone = self.module(x, t), self.module(x, t), self.module(x[:1], t)
            except (TypeError, ValueError, RuntimeError, IndexError) as error:
                reason = str(error).partition("\n")[0]
                raise InputError(
                    f"module: forward(x, t) fails for x of shape {tuple(x.shape)} and t (): {reason}"
                ) from error
        if not isinstance(value, Tensor) or value.shape != x.shape:
            what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"module: forward(x, t) gives {what} for x of shape {tuple(x.shape)}")
        if value.dtype != x.dtype:
            raise InputError(f"module: forward(x, t) gives {value.dtype} for x of float64")
        if not bool(torch.isfinite(value).all()):
            point = ", ".join(f"{c:.3g}" for c in x[(~torch.isfinite(value)).any(dim=1)][0].tolist())
            raise InputError(f"module: its value is not finite at x = ({point}), t = {float(t):.3g}")
        if not torch.equal(value, again):
            raise InputError(
                "module: its value is random; call module.eval(), and give `noise` to the problem"
            )
        # a batch of one may be summed in another order
        if not torch.allclose(value[:1], alone, rtol=1e-9, atol=1e-12):
            raise InputError(
                "module: its value at a point depends on the other points of the batch; leave batch "
                "normalisation out, or call module.eval()"
            )
