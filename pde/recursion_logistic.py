"""The logistic loss at the departure points of the last layer, compiled, with its derivative by the field.

It looks at the first component alone: what the others' numbers are makes no difference to it.
"""

from __future__ import annotations

from kolmo.compiled.elementary import softplus, softplus_slope
from kolmo.kernel import kernel


@kernel
def expect(x, f, shifts, weights, scale, c, out):  # type: ignore[no-untyped-def]
    """E[Phi_y] of both labels into out (2, Q), from first components x (Q,) and f (Q,).

    weights: the probabilities of its numbers `shifts` (K,). c: `elementary.constants`.
    """
    none, one = out[0], out[1]
    none[:] = 0.0
    one[:] = 0.0
    for k in range(len(shifts)):
        shift, weight = shifts[k], weights[k]
        for q in range(len(x)):
            t = scale * (x[q] + shift * f[q])
            none[q] += weight * softplus(t, c)
            one[q] += weight * softplus(-t, c)


@kernel
def expect_transposed(x, f, shifts, weights, scale, c, cotangent, d_f):  # type: ignore[no-untyped-def]
    """Derivatives of sum(cotangent * expectations) by f, into d_f (Q,); cotangent (2, Q)."""
    none, one = cotangent[0], cotangent[1]
    d_f[:] = 0.0
    for k in range(len(shifts)):
        shift, weight = shifts[k], weights[k]
        for q in range(len(x)):
            t = scale * (x[q] + shift * f[q])
            pull = none[q] * softplus_slope(t, c) - one[q] * softplus_slope(-t, c)
            d_f[q] += weight * shift * scale * pull
