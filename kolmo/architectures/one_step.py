"""One-step schemes: ResNet, PolyNet, FractalNet."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from kolmo.architectures.base import Discretisation


class ResNet(Discretisation):
    """Forward Euler: x_{k+1} = x_k + h f_k(x_k).

    Source: He, Zhang, Ren, Sun, 1512.03385.
    """

    scheme, order = "forward Euler", 1

    def layers(self, x: Tensor) -> Iterator[Tensor]:
        for k in range(self.depth):
            x = x + self.perturbed(k, self.increment(k, x))
            yield x


class PolyNet(Discretisation):
    r"""Backward Euler, its Neumann series cut: x_{k+1} = (I + F + F^2) x_k, F = h f_k, F^2 x = F(F(x)).

    (I - F)^-1 = I + F + F^2 + ... for linear blocks. What is cut is O(h^3), but backward Euler itself is of
    order 1, and so is this. F(F(x)) = h f(h f(x)) = h f(0) + O(h^2): the limit is x' = f(x) + f(0), and the
    reading as backward Euler needs f(0) = 0.
    Source: the module poly-2 of Zhang, Li, Loy, Lin, PolyNet, 1611.05725; the weights of both F are shared.
    """

    scheme, order = "backward Euler, truncated", 1

    def layers(self, x: Tensor) -> Iterator[Tensor]:
        for k in range(self.depth):
            first = self.increment(k, x)
            x = x + self.perturbed(k, first + self.increment(k, first))
            yield x


class FractalNet(Discretisation):
    r"""Runge-Kutta (Heun): the mean of a column of two Euler steps and a column without any.

        x_{k+1} = 1/2 [ x + S(S(x)) ],  S(x) = x + h f_k(x),  that is  x + h/2 [ f_k(x) + f_k(x + h f_k(x)) ].

    It is the fractal of order 2 (one expansion f_2 = join(f_1 o f_1, f_1), the join a mean) of Larsson,
    Maire, Shakhnarovich, FractalNet, 1605.07648, which 1710.10121 reads as
    x_{k+1} = k_1 x + k_2 (k_3 x + f_1(x)) + f_2(k_3 x + f_1(x)): here k_1 = k_2 = 1/2, k_3 = 1, f_1 = h f and
    f_2 = h f / 2, which are the coefficients of order 2 with one block in both places.
    """

    scheme, order = "Runge-Kutta (Heun)", 2

    def layers(self, x: Tensor) -> Iterator[Tensor]:
        for k in range(self.depth):
            first = self.increment(k, x)
            x = x + self.perturbed(k, 0.5 * (first + self.increment(k, x + first)))
            yield x
