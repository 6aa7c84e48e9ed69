"""Pontryagin's conditions of the control network: Hamiltonian, residual by layer, leading curvatures."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from kolmo import plotting
from kolmo.control.hamiltonian import STATIONARY
from kolmo.experiments.binary_classification import BinaryClassification
from kolmo.plotting import COLOURS, tidy


def pontryagin(run: BinaryClassification) -> Figure | None:
    """H and |theta - P(theta - dH)| over depth, eigenvalues of the Hessian; None without a verdict."""
    found = run.optimality
    if "hamiltonian" not in found:
        return None
    figure, colour = plotting.new_figure(10.4, 3.7), COLOURS["control"]
    left, middle, right = figure.subplots(1, 3)
    network = run.problem.network
    times = network.step * np.arange(network.depth + 1)
    for panel, name in ((left, "hamiltonian"), (middle, "residual")):
        plotting.draw_steps(panel, times, np.array(found[name])[:, None], color=colour, linewidth=1.6)
        panel.set_xlim(0, network.horizon)
    # a stationary network has this norm in all layers together at most: as a mean over them
    allowed = STATIONARY * found["relative_to"] / network.step / np.sqrt(network.depth)
    middle.axhline(allowed, color="0.3", linewidth=1, linestyle=":", label="stationary (root mean square)")
    middle.set_yscale("log")
    middle.legend(frameon=False, fontsize=9)
    tidy(left, "depth $t = kh$", "Hamiltonian $H_k$, loss per time", "Hamiltonian")
    label = r"$|\theta_k - P(\theta_k - \partial H_k)|$"
    tidy(middle, "depth $t = kh$", label, "Pontryagin's residual")
    values = np.array(found["eigenvalues"])
    if len(values):
        numbers = np.arange(1, len(values) + 1)
        stems = right.stem(numbers, values, basefmt=" ")
        stems.markerline.set_color(colour)
        stems.stemlines.set_color(colour)
        right.axhline(0, color="0.3", linewidth=0.8)
        right.set_xticks(numbers)
        right.set_xlim(0.4, len(values) + 0.6)
    tidy(right, "number", "eigenvalue, loss per squared weight", "leading curvatures")
    relative = found["projected_gradient"] / found["relative_to"]
    title = f"control network: {found['verdict']} (projected gradient {relative:.1e} of J's own)"
    figure.suptitle(title, fontsize=12)
    return figure
