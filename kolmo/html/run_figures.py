"""Charts of the main job: decision regions, trainings, weights over depth, Pontryagin's Hamiltonian."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from bokeh.models import ColumnDataSource, LinearColorMapper, Range1d, Span

from kolmo import plotting
from kolmo.control.hamiltonian import STATIONARY
from kolmo.experiments.binary_classification import BinaryClassification
from kolmo.figures import STEP_LIMIT, begun, followed
from kolmo.html.charts import DASHES, add_bar, add_map, chart, legend, shades, steps
from kolmo.html.page import Figure, Picture
from kolmo.plotting import CLASS_COLOURS, COLOURS, SCORES

#: points a direction of the maps of regions; data points and points of a curve shown at most
GRID, _SHOWN, _KEPT = 101, 500, 400
#: values of a weight drawn in one chart
_LEVELS = 1600
_TOGETHER = "The tools above a picture move and zoom them together. "
_HIDES = "An entry of a legend hides what it names, and shows it again."
_MARKERS = ("circle", "triangle")


def _look(name: str) -> dict[str, Any]:
    """Colour and dash of a network, the same in all charts."""
    return {"line_color": COLOURS[name], "line_dash": DASHES[plotting.DASHES[name]], "line_width": 2}


# decision regions


def regions(run: BinaryClassification, stills: list[Picture]) -> Figure | None:
    """Data and the score x_1 of the final features, noise off, one chart per network."""
    trained, dim = begun(run), run.train.dim
    if not trained:
        return None
    data = run.train.points.numpy()
    lower, upper = data.min(axis=0), data.max(axis=0)
    margin = 0.08 * float((upper - lower).max())
    axes = [np.linspace(lower[i] - margin, upper[i] + margin, GRID) for i in range(min(dim, 2))]
    points = torch.from_numpy(plotting.in_plane(axes, dim))
    with torch.no_grad():
        scores = {name: item.network(points)[..., 0].numpy() for name, item in trained.items()}
    limit = float(np.quantile(np.abs(np.stack(list(scores.values()))), 0.98 if dim > 1 else 1)) or 1.0
    ranges = [Range1d(a[0], a[-1]) for a in axes]
    charts = []
    for name, score in scores.items():
        if dim == 1:
            made = chart(name, "x", "score x₁", height=340, x_range=ranges[0])
            made.line(axes[0], score, line_color="black", line_width=2)
            made.add_layout(Span(location=0, dimension="width", line_color="#666666", line_dash="dashed"))
        else:
            made = chart(name, "x₁", "x₂", height=480, x_range=ranges[0], y_range=ranges[1])
            colours = LinearColorMapper(shades(SCORES), low=-limit, high=limit)
            add_map(made, axes, [score], colours, "score", level=0.0)
            add_bar(made, colours, title="score x₁ of the final features")
        _scatter(made, run, limit)
        legend(made)
        charts.append(made)
    parts = [f"{name} {(score > 0).mean():.0%}" for name, score in scores.items()]
    caption = (
        "The networks with the noise off. Black line: score 0, the boundary of decision; below it is class 0 "
        f"(orange discs), above it class 1 (blue triangles). Share of the picture that is class 1: "
        f"{', '.join(parts)}."
    )
    if dim > 2:
        caption += " Shown is the plane x₁, x₂ through 0, data are projected onto it."
    return Figure(
        "regions",
        "Decision regions of the networks, side by side",
        caption,
        charts,
        stills=stills,
        hint=_TOGETHER + _HIDES,
    )


def _scatter(made: Any, run: BinaryClassification, limit: float) -> None:
    """The training data, in one dimension spread near the edges."""
    points, labels = run.train.points.numpy(), run.train.labels.numpy()
    chosen = np.linspace(0, len(points) - 1, min(len(points), _SHOWN)).astype(int)
    points, labels = points[chosen], labels[chosen]
    for label in (0, 1):
        here = points[labels == label]
        spread = np.random.default_rng(label).uniform(0.86, 0.97, len(here)) * (2 * label - 1) * limit
        made.scatter(
            here[:, 0].astype(np.float32), (here[:, 1] if run.train.dim > 1 else spread).astype(np.float32),
            marker=_MARKERS[label], size=7, fill_color=CLASS_COLOURS[label], line_color="white",
            legend_label=f"class {label}",
        )  # fmt: skip


# trainings


def training(run: BinaryClassification, stills: list[Picture]) -> Figure | None:
    """The objective against evaluations and seconds; J by both estimators along the way."""
    trained = begun(run)
    if not trained:
        return None
    charts: list[Any] = []
    for column, label in ((1, "evaluations of a block at a point"), (0, "seconds")):
        shared = {"y_range": charts[0].y_range} if charts else {"y_axis_type": "log"}
        if charts:
            shared["y_axis_type"] = "log"
        made = chart("objective against " + label.split()[0], label, "J + penalties", height=360,
                     x_axis_type="log", **shared)  # fmt: skip
        for name, item in trained.items():
            rows = np.array(item.history, dtype=float)
            kept = plotting.log_spaced(len(rows), _KEPT)
            objective = plotting.running_mean(rows[:, 2]) if name == "stochastic" else rows[:, 2]
            made.line(rows[kept, column], objective[kept], legend_label=name, **_look(name))
        legend(made)
        charts.append(made)
    paths = _paths(run)
    caption = (
        "Control is J by the equation with penalties; stochastic is the mean of up to 50 batches; noiseless "
        "is the objective without noise, and therefore lower."
    )
    if paths is not None:
        charts.append(paths)
        caption += " Last: J by the equation relative to J by the chain along both trainings (bars: 95%)."
    label = "Training curves of the networks"
    return Figure("training", label, caption, charts, stills=stills, least=20.0, hint=_HIDES)


def _paths(run: BinaryClassification) -> Any:
    """J by the equation against J by the chain, in %, at the snapshots of the noisy trainings."""
    found = {name: path for name, rows in run.paths.items() if len(path := followed(rows))}
    if not found:
        return None
    made = chart("equation against chain along the trainings", "evaluations of a block at a point",
                 "difference, % of J", height=360, x_axis_type="log")  # fmt: skip
    every = np.concatenate([path[:, 0] for path in found.values()])
    made.line([every.min(), every.max()], [0, 0], line_color="#666666", line_dash="dashed")
    for name, path in found.items():
        x, pde, chain, error = path.T
        gap, bar = 100 * (pde / chain - 1), 196 * error * pde / chain**2
        made.segment(x, gap - bar, x, gap + bar, line_color=COLOURS[name], line_width=1.5)
        marker = "circle" if name == "control" else "square"
        made.scatter(x, gap, marker=marker, size=8, fill_color="white", line_color=COLOURS[name],
                     line_width=2, legend_label=name)  # fmt: skip
    legend(made)
    return made


# over depth


def weights(run: BinaryClassification, stills: list[Picture]) -> Figure | None:
    """Entries of W and V over depth, and the step that the modified equation limits, for each network."""
    trained = begun(run)
    if not trained:
        return None
    network = run.problem.network
    times = network.step * np.arange(network.depth + 1)
    depth = Range1d(0, network.horizon)
    complete = True
    rows: dict[str, list[Any]] = {"W": [], "V": [], "step h |V W|": []}
    for (quantity, row), (name, item) in itertools.product(rows.items(), trained.items()):
        shared = {"y_range": row[0].y_range} if row else {}
        title = f"{quantity}, {name}"
        made = chart(title, "depth t", quantity, height=300, x_range=depth, **shared)
        if quantity in "WV":
            weight = getattr(item.network, quantity).detach().numpy()
            complete &= _levels(made, times, weight, COLOURS[name])
        else:
            x, y = steps(times, item.network.step_size().detach().numpy()[:, None])
            made.line(x, y[:, 0], **_look(name))
            made.line(
                [0, network.horizon], [STEP_LIMIT] * 2, line_dash="dotted", line_color="black", line_width=2
            )
            made.y_range.start = 0
        row.append(made)
    worst = [f"{name} {item.network.step_size().max().item():.2f}" for name, item in trained.items()]
    caption = (
        "Entries of the weights, constant on each layer: lines that stay level or move smoothly are a "
        f"network that tends to a flow. Last row: the step of each layer, at most {', '.join(worst)}; "
        f"dotted: {STEP_LIMIT:g}, above which the modified equation loses its meaning."
    )
    if not complete:
        caption += " Of so many entries and layers, evenly chosen ones are drawn."
    charts = [made for row in rows.values() for made in row]
    return Figure("weights", "Weights over depth", caption, charts, stills=stills, least=18.0, hint=_TOGETHER)


def _levels(made: Any, times: np.ndarray, weight: np.ndarray, colour: str) -> bool:
    """Entries of weights (L, ...) as levels, their jumps hinted at; whether _LEVELS are enough for all."""
    values = weight.reshape(len(weight), -1)
    every = -(-len(values) // (_LEVELS // 8))
    values, times = values[::every], np.append(times[:-1:every], times[-1])
    columns = np.linspace(0, values.shape[1] - 1, min(values.shape[1], _LEVELS // len(values))).astype(int)
    x, y = steps(times, values[:, columns])
    lines = ColumnDataSource({"xs": [x] * y.shape[1], "ys": list(y.T)})
    made.multi_line("xs", "ys", source=lines, line_color=colour, line_alpha=0.25, line_width=0.5)
    left, right = (np.repeat(t, len(columns)).astype(np.float32) for t in (times[:-1], times[1:]))
    level = y[::2].ravel()
    made.segment(left, level, right, level, line_color=colour, line_alpha=0.8, line_width=1.5)
    return level.size == weight.size


def hamiltonian(run: BinaryClassification, stills: list[Picture]) -> Figure | None:
    """H and Pontryagin's residual over depth, of the control network; None without a verdict."""
    found, network = run.optimality, run.problem.network
    if "hamiltonian" not in found:
        return None
    times = network.step * np.arange(network.depth + 1)
    depth = Range1d(0, network.horizon)
    left = chart("Hamiltonian H(t)", "depth t", "loss per time", height=340, x_range=depth)
    right = chart("Pontryagin's residual", "depth t", "|θ − P(θ − ∂H)|", height=340, x_range=depth,
                  y_axis_type="log")  # fmt: skip
    for made, name in ((left, "hamiltonian"), (right, "residual")):
        x, y = steps(times, np.array(found[name])[:, None])
        made.line(x, y[:, 0], line_color=COLOURS["control"], line_width=2)
    # a stationary network has this norm in all layers together at most: as a mean over them
    allowed = STATIONARY * found["relative_to"] / network.step / np.sqrt(network.depth)
    right.line([0, network.horizon], [allowed, allowed], line_color="black", line_dash="dotted", line_width=2,
               legend_label="stationary (root mean square)")  # fmt: skip
    legend(right)
    caption = (
        "Left: H is constant in t where weights are optimal and smooth in depth, and jumps with weights that "
        "jump. Right: how far each layer is from stationary; below the dotted line the whole network counts "
        "as stationary."
    )
    label = "Pontryagin's Hamiltonian and residual over depth"
    return Figure("hamiltonian", label, caption, [left, right], stills=stills, least=24.0)
