"""The figures of a run: decision regions, value function and density, training, cross-check, weights;
error budgets and Pontryagin's conditions are drawn next door."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, PowerNorm
from matplotlib.figure import Figure

from kolmo import plotting
from kolmo.errors import InfeasibleError
from kolmo.experiments.binary_classification import BinaryClassification
from kolmo.experiments.three_ways import METHODS, Trained
from kolmo.figures_errors import errors
from kolmo.figures_pontryagin import pontryagin
from kolmo.pde import BackwardKolmogorov
from kolmo.pde.domain import choose_half_width
from kolmo.pde.kolmogorov import Solution
from kolmo.plotting import CLASS_COLOURS, CLASS_MARKERS, COLOURS, DASHES, DENSITIES, SCORES, VALUES, tidy

#: meshes for the value function, cells per direction by dimension: the first that is not refused
CELLS = {1: (256, 128, 64, 512), 2: (64, 48, 96, 128), 3: (20, 14, 28)}
#: data points shown at most
SHOWN = 500
#: what h |V W| has to stay below for the modified equation to hold
STEP_LIMIT = 0.3


def write_figures(run: BinaryClassification, folder: Path) -> list[str]:
    """NAME.png and NAME.pdf of every figure that the run has data for; returns the names.

    An interrupted run gets fewer figures. Raises InputError where a file cannot be written.
    """
    makers: dict[str, Callable[[BinaryClassification], Figure | None]] = {
        "regions": regions,
        "value_density": value_density,
        "training": training,
        "paths": paths,
        "weights": weights,
        "errors": errors,
        "pontryagin": pontryagin,
    }
    written = []
    for name, make in makers.items():
        figure = make(run)
        if figure is not None:
            plotting.save(figure, folder, name)
            written.append(name)
    return written


def begun(run: BinaryClassification) -> dict[str, Trained]:
    """The networks whose training has begun, in fixed order."""
    return {name: run.trained[name] for name in METHODS if name in run.trained and run.trained[name].history}


# decision regions


def regions(run: BinaryClassification) -> Figure | None:
    """Data and the score x_1 of the final features, noise off, one panel per network."""
    trained, dim = begun(run), run.train.dim
    if not trained:
        return None
    lower, upper = run.train.points.numpy().min(axis=0), run.train.points.numpy().max(axis=0)
    margin = 0.08 * (upper - lower).max()
    axes = [np.linspace(lower[i] - margin, upper[i] + margin, 201) for i in range(min(dim, 2))]
    points = torch.from_numpy(plotting.in_plane(axes, dim))
    with torch.no_grad():
        scores = {name: item.network(points)[..., 0].numpy() for name, item in trained.items()}
    shape = 0.8 if dim == 1 else np.ptp(axes[1]) / np.ptp(axes[0])
    height = 3.0 * float(shape) + 1.25 + 0.25 * bool(run.measured) + 0.35 * (dim > 2)
    figure = plotting.new_figure(3.3 * len(trained) + 1.0, height)
    panels = figure.subplots(1, len(trained), sharex=True, sharey=True, squeeze=False)[0]
    sizes = np.abs(np.stack(list(scores.values())))
    limit = (1.3 * float(sizes.max()) if dim == 1 else float(np.quantile(sizes, 0.98))) or 1.0
    for panel, (name, score) in zip(panels, scores.items(), strict=True):
        _region_panel(panel, run, axes, score, limit)
        panel.set_title(_accuracies(run, name), fontsize=11)
    panels[0].set_ylabel("score $x_1$ of the final features" if dim == 1 else "$x_2$")
    if dim > 1:
        scale = ScalarMappable(Normalize(-limit, limit), SCORES)
        bar = figure.colorbar(scale, ax=list(panels), extend="both", aspect=18, pad=0.015)
        bar.set_label("score $x_1$ of the final\nfeatures, noise off")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    if dim > 2:
        figure.suptitle(f"Decision regions: {plotting.slice_name(dim)}, data projected onto it", fontsize=12)
    return figure


def _accuracies(run: BinaryClassification, name: str) -> str:
    found = run.measured.get(name)
    if found is None:
        return name
    return f"{name}\naccuracy: train {found['train_accuracy']:.1%}, test {found['test_accuracy']:.1%}"


def _region_panel(
    panel: Axes, run: BinaryClassification, axes: list[np.ndarray], score: np.ndarray, limit: float
) -> None:
    """One network's score: a map with its zero line, or a curve in one dimension."""
    points, labels = run.train.points.numpy(), run.train.labels.numpy()
    chosen = np.linspace(0, len(points) - 1, min(len(points), SHOWN)).astype(int)
    points, labels = points[chosen], labels[chosen]
    panel.set_xlabel("$x_1$" if len(axes) > 1 else "$x$")
    panel.tick_params(labelsize=9)
    if len(axes) > 1:
        extent = (axes[0][0], axes[0][-1], axes[1][0], axes[1][-1])
        norm = Normalize(-limit, limit)
        panel.imshow(score.T, origin="lower", extent=extent, cmap=SCORES, norm=norm, interpolation="bilinear")
        if score.min() < 0 < score.max():
            panel.contour(*axes, score.T, levels=[0.0], colors="black", linewidths=1.6)
    else:
        panel.plot(axes[0], score, color="black", linewidth=1.6)
        panel.axhline(0, color="0.4", linewidth=0.8, linestyle="--")
        panel.set(xlim=(axes[0][0], axes[0][-1]), ylim=(-limit, limit))
        for label, inside in ((0, score < 0), (1, score > 0)):
            panel.fill_between(
                axes[0], 0, 1, where=inside, transform=panel.get_xaxis_transform(),
                color=CLASS_COLOURS[label], alpha=0.15, linewidth=0,
            )  # fmt: skip
    for label in (0, 1):
        here = points[labels == label]
        spread = np.random.default_rng(label).uniform(0.86, 0.97, len(here)) * (2 * label - 1) * limit
        panel.scatter(
            here[:, 0], here[:, 1] if len(axes) > 1 else spread, s=18, marker=CLASS_MARKERS[label],
            color=CLASS_COLOURS[label], edgecolors="white", linewidths=0.5, label=f"class {label}", zorder=3,
        )  # fmt: skip
    panel.plot([], [], color="black", linewidth=1.6, label="score $x_1$" if len(axes) == 1 else "$x_1 = 0$")


# value function and density


def value_density(run: BinaryClassification) -> Figure | None:
    """Value function and density of the control network at five times."""
    solution = control_solution(run)
    if solution is None:
        return None
    last = len(solution.times) - 1
    layers = np.unique(np.rint(np.linspace(0, last, 5)).astype(int))
    axes, value = plotting.node_grid(solution.points, np.moveaxis(solution.value[layers], 0, 1))
    _, density = plotting.node_grid(
        solution.points, np.moveaxis(solution.density[layers] / solution.lumped_mass[:, None], 0, 1)
    )
    times, density = solution.times[layers], np.maximum(plotting.smooth(density, len(axes)), 0)
    if run.train.dim == 1:
        return plotting.value_curves(axes[0], times, value, density)
    return _maps(run, axes, times, value, density)


def control_solution(run: BinaryClassification) -> Solution | None:
    """The equation of the control network on the first mesh that takes it; None where none does."""
    trained = begun(run)
    if "control" not in trained or run.train.dim not in CELLS:
        return None
    problem = run.under_noise(trained["control"].network)
    try:
        half_width = choose_half_width(problem)
    except InfeasibleError:
        return None
    for cells in CELLS[run.train.dim]:
        try:
            return BackwardKolmogorov(
                problem,
                cells=cells,
                order=run.config.control.order,
                backend=run.backend,
                half_width=half_width,
                limit=True,
            ).solve()
        except InfeasibleError:
            continue
    return None


def _maps(
    run: BinaryClassification,
    axes: list[np.ndarray],
    times: np.ndarray,
    value: np.ndarray,
    density: np.ndarray,
) -> Figure:
    """Four rows of maps (u_0, u_1, rho_0, rho_1), one column per time; arrays (n, n, times, 2)."""
    figure = plotting.new_figure(1.75 * len(times) + 1.75, 7.8)
    panels = figure.subplots(4, len(times), sharex=True, sharey=True, squeeze=False)
    low, high = np.quantile(value, [0.05, 0.95])
    values = LogNorm(max(low, 1e-3 * high), high)
    densities = PowerNorm(0.5, 0, plotting.clipping(density))
    level = float(run.problem.loss(torch.zeros(1, run.train.dim, dtype=torch.float64), 0))
    for row, column in np.ndindex(*panels.shape):
        label, panel = row % 2, panels[row, column]
        if row < 2:
            plotting.draw_map(panel, axes, value[:, :, column, label], VALUES, values, level)
        else:
            plotting.draw_map(panel, axes, density[:, :, column, label], DENSITIES[label], densities)
        panel.set_title(f"$t = {times[column]:.3g}$" if row == 0 else "", fontsize=11)
        panel.set_xlabel("$x_1$" if row == 3 else "")
        panel.set_ylabel(f"{'label' if row < 2 else 'class'} {label}\n$x_2$" if column == 0 else "")
    bar = figure.colorbar(
        ScalarMappable(values, VALUES), ax=list(panels[:2].flat), extend="both", aspect=28, pad=0.015
    )
    text = "expected final loss $u_y(x, t)$\nlog scale, clipped at the 5% and 95% quantiles"
    bar.set_label(text, fontsize=9)
    for label in (0, 1):
        scale = ScalarMappable(densities, DENSITIES[label])
        bar = figure.colorbar(scale, ax=list(panels[2 + label]), extend="max", aspect=14, pad=0.015)
        bar.set_ticks(plotting.root_ticks(plotting.clipping(density)))
        text = f"density $\\rho_{label}(x, t)$\nmean over 2 cells, root\nscale, clipped at 99.5%"
        bar.set_label(text, fontsize=9)
    title = f"Expected final loss $u_y$ (white: {level:.2g}, the loss at $x_1 = 0$) and density $\\rho_y$"
    if run.train.dim > 2:
        title += f"\n{plotting.slice_name(run.train.dim)}"
    figure.suptitle(title, fontsize=12)
    return figure


# training and cross-check


def training(run: BinaryClassification) -> Figure | None:
    """The objective against network evaluations and against time."""
    trained = begun(run)
    if not trained:
        return None
    figure = plotting.new_figure(9.6, 4.2)
    panels = figure.subplots(1, 2, sharey=True)
    note = {
        "control": "control: $J$ by the equation",
        "stochastic": "stochastic: batches (thin), mean of up to 50",
        "noiseless": "noiseless: objective without noise",
    }
    for name, item in trained.items():
        seconds, evaluations, objective = np.array(item.history, dtype=float).T
        smooth = plotting.running_mean(objective) if name == "stochastic" else objective
        kept = plotting.log_spaced(len(objective))
        look: dict[str, Any] = {"color": COLOURS[name], "linestyle": DASHES[name], "label": note[name]}
        for panel, x in zip(panels, (evaluations, seconds), strict=True):
            if name == "stochastic":
                panel.plot(x, objective, color=COLOURS[name], alpha=0.35, linewidth=0.6, rasterized=True)
            panel.plot(x[kept], smooth[kept], linewidth=1.8, **look)
    tidy(panels[0], "evaluations of a block at a point", "objective: $J$ + penalties")
    tidy(panels[1], "seconds", "")
    for panel in panels:
        panel.set_xscale("log")
    plotting.readable_log(panels[0])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    return figure


def paths(run: BinaryClassification) -> Figure | None:
    """J by the equation against J by the chain along both noisy trainings."""
    found = {name: followed(rows) for name, rows in run.paths.items() if rows}
    if not any(len(path) for path in found.values()):
        return None
    figure = plotting.new_figure(9.6, 4.3)
    left, right = figure.subplots(1, 2)
    for name, path in found.items():
        evaluations, pde, chain, error = path.T
        refused = len(run.paths[name]) - len(path)
        look: dict[str, Any] = {
            "color": COLOURS[name],
            "markerfacecolor": "white",
            "fmt": "o" if name == "control" else "s",
            "markersize": 6,
            "capsize": 2.5,
            "elinewidth": 1,
            "label": name + (f" ({refused} refused by the mesh)" if refused else ""),
        }
        left.errorbar(chain, pde, xerr=1.96 * error, **look)
        right.errorbar(evaluations, 100 * (pde / chain - 1), yerr=196 * error * pde / chain**2, **look)
    every = np.concatenate([path[:, 1:3].ravel() for path in found.values()])
    ends = np.array([every.min(), every.max()]) * [0.95, 1.05]
    left.plot(ends, ends, color="0.5", linewidth=1, linestyle="--", zorder=1, label="equal")
    right.axhline(0, color="0.5", linewidth=1, linestyle="--", zorder=1)
    tidy(left, "$J$ by the chain (bars: 95%)", "$J$ by the Kolmogorov equation")
    tidy(right, "evaluations of a block at a point", "equation against chain, in % of $J$")
    left.legend(frameon=False, fontsize=10)
    right.set_xscale("log")
    return figure


def followed(rows: list[dict[str, float | None]]) -> np.ndarray:
    """(n, 4): evaluations, J by the equation, J by the chain, its standard error, where both are."""
    names = ("evaluations", "pde", "chain", "standard_error")
    kept = [[row[name] for name in names] for row in rows if row["pde"] is not None]
    return np.array(kept, dtype=float).reshape(-1, 4)


# weights


def weights(run: BinaryClassification) -> Figure | None:
    """Weights over depth, and the step size that the modified equation limits."""
    trained = begun(run)
    if not trained:
        return None
    figure = plotting.new_figure(3.1 * len(trained) + 0.6, 7.2)
    grid = figure.add_gridspec(3, len(trained), height_ratios=[1, 1, 1])
    bottom = figure.add_subplot(grid[2, :])
    first: dict[str, Axes] = {}
    for column, (name, item) in enumerate(trained.items()):
        network = item.network
        times = network.step * np.arange(network.depth + 1)
        for row, weight in enumerate(("W", "V")):
            panel = figure.add_subplot(grid[row, column], sharey=first.get(weight), sharex=bottom)
            first.setdefault(weight, panel)
            entries = getattr(network, weight).detach().numpy().reshape(network.depth, -1)
            plotting.draw_levels(panel, times, entries, COLOURS[name])
            tidy(panel, "", f"entries of ${weight}$" if column == 0 else "", name if row == 0 else "")
            panel.tick_params(labelleft=column == 0, labelbottom=row == 1)
        sizes = network.step_size().detach().numpy()[:, None]
        look: dict[str, Any] = {"color": COLOURS[name], "linestyle": DASHES[name], "label": name}
        plotting.draw_steps(bottom, times, sizes, linewidth=1.8, **look)
    bottom.axhline(STEP_LIMIT, color="0.3", linewidth=1, linestyle=":", label=f"limit {STEP_LIMIT:g}")
    bottom.set_ylim(0, 1.25 * max(STEP_LIMIT, bottom.get_ylim()[1] / 1.05))
    bottom.set_xlim(0, run.problem.network.horizon)
    tidy(bottom, "depth $t = kh$", "step $h\\,|V_k W_k|_F$")
    bottom.legend(frameon=False, fontsize=10, ncols=4, loc="upper center")
    return figure
