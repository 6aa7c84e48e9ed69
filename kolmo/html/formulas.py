"""The formulas of the page, as MathML that browsers set without any script (symbols: README, docs/)."""

from __future__ import annotations

from latex2mathml.converter import convert
from markupsafe import Markup

#: what is set, by name: in words, in LaTeX
_FORMULAS = {
    "chain": (
        "A layer with noise, and the expected loss that is minimised:",
        r"X_{k+1} = X_k + h\, G(X_k, \theta_k, \omega_k), \qquad "
        r"J(\theta) = \frac{1}{M} \sum_{i=1}^{M} E\left[ \Phi_{y_i}(X_L) \mid X_0 = x_i \right]",
    ),
    "backward": (
        "The backward Kolmogorov equation of the modified drift b and diffusion a:",
        r"\partial_t u_y + b \cdot \nabla u_y + \frac{1}{2}\, a \,:\, \nabla^2 u_y = 0, \qquad "
        r"u_y(\cdot, T) = \Phi_y, \qquad J = \sum_y \langle u_y(\cdot, 0), \rho_y(\cdot, 0) \rangle",
    ),
    "forward": (
        "Its adjoint moves the densities, and the pairing stays the same at all times:",
        r"\partial_t \rho_y = L_\theta^{*} \rho_y, \qquad "
        r"\sum_y \langle u_y(\cdot, t), \rho_y(\cdot, t) \rangle = J",
    ),
    "hamiltonian": (
        "Pontryagin's Hamiltonian, stationary in the weights of every layer at an optimum:",
        r"H(t, \theta) = \sum_y \langle \rho_y, L_\theta u_y \rangle + \mathrm{penalty}(\theta), \qquad "
        r"L_\theta u = b \cdot \nabla u + \frac{1}{2}\, a \,:\, \nabla^2 u",
    ),
    "objective": (
        "The objective of control and stochastic training:",
        r"J(\theta) + \mathrm{penalty}(\theta)",
    ),
    "step": (
        "The modified equation holds where a layer's step is small:",
        r"h\, {\left| V_k W_k \right|}_F < {limit}",
    ),
}


def formula(name: str, **values: object) -> tuple[str, Markup]:
    """A formula in words and as MathML; {name} in it is replaced by values."""
    words, latex = _FORMULAS[name]
    for key, value in values.items():
        latex = latex.replace(f"{{{key}}}", str(value))
    return words, Markup(convert(latex, display="block"))
