"""The page of one visitor: what is chosen on the left, time and rate on top, six plots."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import numpy as np
import panel as pn
from bokeh.events import Tap

from kolmo.errors import InputError, KolmoError
from kolmo.explore import texts
from kolmo.explore.model import Frames, Lesson, Step
from kolmo.explore.plots import Plots
from kolmo.explore.settings import DATA, NOISES, RANGES, RATES, Settings
from kolmo.explore.work import News, Worker
from kolmo.text import one_line

#: what each number is called on the page
_NUMBERS = {
    "points": "points",
    "rate": "rate of the noise in training",
    "depth": "depth L, layers",
    "width": "width, hidden units",
    "weight_decay": "weight decay",
    "cells": "cells of the mesh, a direction",
    "iterations": "steps of L-BFGS, at most",
    "seed": "seed",
}
_LABELS = {"u\u2080": 0, "u\u2081": 1}
_SIDE, _PLOT = 235, 355
_TONES = {"plain": "#F3F4F6", "good": "#E5F2EA", "bad": "#FBE9E1"}


class Page:
    """Widgets, plots and what happens between them; all of it on the session's own thread."""

    def __init__(self) -> None:
        self.plots = Plots()
        self._lesson: Lesson | None = None
        self._chosen: list[int] = []
        post: Callable[[Callable[[], None]], None] = self._post_to(pn.state.curdoc)
        self._worker = Worker(post, News(self._step, self._finished, self._looked, self._ended))
        pn.state.on_session_destroyed(lambda context: self._worker.close())
        default = Settings()
        self.data = pn.widgets.Select(name="data set", options=list(DATA), value=default.data, width=_SIDE)
        self.noise = pn.widgets.Select(name="noise", options=list(NOISES), value=default.noise, width=_SIDE)
        self.numbers = {name: _number(name, getattr(default, name)) for name in _NUMBERS}
        self.solve = pn.widgets.Button(name="Train and solve", button_type="primary", width=150)
        self.stop = pn.widgets.Button(name="Stop", disabled=True, width=70)
        self.progress = pn.indicators.Progress(value=0, max=100, width=_SIDE, margin=(8, 10))
        self.message = pn.pane.HTML("", width=_SIDE, name="message")
        self.time = pn.widgets.Player(
            name="time", start=0, end=10, value=5, interval=350, width=290, show_loop_controls=False,
            visible_buttons=["first", "previous", "play", "pause", "next", "last"],
        )  # fmt: skip
        self.rate = pn.widgets.DiscreteSlider(
            name="rate of the noise, same weights", options=list(RATES), value=default.rate, width=200
        )
        self.label = pn.widgets.RadioButtonGroup(options=_LABELS, value=1, width=90, margin=(22, 5, 5, 5))
        self.again = pn.widgets.Button(name="Train at this rate", width=125, margin=(22, 5, 5, 5))
        self.table = pn.pane.HTML("", sizing_mode="stretch_width", name="numbers")
        self._connect()

    def _connect(self) -> None:
        self.solve.on_click(lambda event: self._start())
        self.stop.on_click(lambda event: self._worker.stop())
        self.again.on_click(lambda event: self._start_at(float(self.rate.value)))
        self.time.param.watch(lambda event: self._draw(), "value")
        self.label.param.watch(lambda event: self._draw(), "value")
        self.rate.param.watch(lambda event: self._change_rate(), "value")
        self.plots.paths.on_event(Tap, self._tap)

    def view(self) -> Any:
        """The whole page; the default is solved as soon as it is shown."""
        side = pn.FlexBox(
            self.data, self.noise, pn.Row(self.solve, self.stop), self.progress, self.message,
            *self.numbers.values(), flex_direction="row", align_content="flex-start",
            styles={"flex": f"1 0 {_SIDE + 20}px"},
        )  # fmt: skip
        top = pn.FlexBox(
            self.time, self.rate, self.again, self.label, align_items="flex-start",
            styles={"background": "white", "border-bottom": "1px solid #D0D4DA", "position": "sticky",
                    "top": "0", "z-index": "5"},
        )  # fmt: skip
        captions = (
            (self.plots.value, texts.VALUE), (self.plots.density, texts.DENSITY),
            (self.plots.paths, texts.PATHS), (self.plots.penalty, texts.PENALTY),
            (self.plots.rate, texts.RATE), (self.plots.training, texts.TRAINING),
        )  # fmt: skip
        plots = pn.FlexBox(*(_captioned(plot, text) for plot, text in captions), align_items="flex-start")
        main = pn.Column(top, self.table, plots, styles={"flex": "1000 1 700px"}, min_width=360)
        pn.state.onload(self._start)
        return pn.Column(
            pn.pane.HTML(texts.INTRODUCTION, sizing_mode="stretch_width", styles={"max-width": "1100px"}),
            pn.FlexBox(side, main, align_items="flex-start", sizing_mode="stretch_width"),
            sizing_mode="stretch_width", styles={"font-family": "Helvetica, Arial, sans-serif"},
        )  # fmt: skip

    # ------------------------------------------------------------------ training

    def _start_at(self, rate: float) -> None:
        self.numbers["rate"].value = rate
        self._start()

    def _start(self) -> None:
        try:
            settings = Settings(
                data=self.data.value,
                noise=self.noise.value,
                **{name: widget.value for name, widget in self.numbers.items()},
            )
        except InputError as error:
            self._say(f"{error}", "bad")
            return
        if not self._worker.start(settings):
            self._say("A training is under way: stop it, or wait for its end.", "bad")
            return
        self._busy(True)
        self.progress.value = 0
        self._say("Training begins; the first one after the start loads libraries too.", "plain")

    def _step(self, step: Step) -> None:
        if not self._worker.busy:
            return  # news of the past
        self.progress.value = round(100 * step.number / step.most) if step.number < step.most else 100
        self._say(
            f"Training: step {step.number} of {step.most} at most, objective {step.objective:.5f}", "plain"
        )

    def _finished(self, lesson: Lesson) -> None:
        settings, depth = lesson.settings, lesson.settings.depth
        with pn.io.hold():
            self._busy(False)
            self.progress.value = 100
            found = lesson.at(settings.rate)
            self._lesson, self._chosen = lesson, lesson.undecided()
            self.plots.lesson(lesson, found)
            last = len(found.times) - 1
            self.time.param.update(end=last, value=min(self.time.value, last))
            self.rate.param.update(value=min(RATES, key=lambda r: abs(r - settings.rate)))
            self._change_rate()
        self._say(
            f"Solved in {lesson.seconds:.1f} s: {len(lesson.history)} steps, {depth} layers, "
            f"{lesson.cells} cells a direction.",
            "good",
        )

    def _looked(self, lesson: Lesson, found: Frames) -> None:
        if lesson is self._lesson:
            self.plots.rates(lesson.known, float(self.rate.value))

    def _ended(self, reason: str, error: bool) -> None:
        self._busy(False)
        self._say(reason, "bad" if error else "plain")

    def _busy(self, busy: bool) -> None:
        self.solve.disabled = self.again.disabled = busy
        self.stop.disabled = not busy

    # ------------------------------------------------------------------ looking at it

    def _found(self) -> Frames | None:
        """What is shown; None before the first lesson, and where the equation refuses the rate."""
        if self._lesson is None:
            return None
        try:
            return self._lesson.at(float(self.rate.value))
        except KolmoError as error:
            self._say(f"rate {self.rate.value}: {one_line(error)}", "bad")
            return None

    def _change_rate(self) -> None:
        found = self._found()
        if found is None or self._lesson is None:
            return
        with pn.io.hold():
            self.plots.frames(found)
            self.plots.rates(self._lesson.known, found.rate)
            self.table.object = _numbers(found)
            self._draw()

    def _draw(self) -> None:
        found = self._found()
        if found is None or self._lesson is None:
            return
        number = min(int(self.time.value), len(found.times) - 1)
        labels = self._lesson.problem.data.labels.numpy()
        layer, depth = found.layers[number], self._lesson.settings.depth
        with pn.io.hold():
            self.time.name = f"time t = {found.times[number]:.3g}, after {layer} of {depth} layers"
            self.plots.frame(found, number, int(self.label.value), self._chosen, labels)

    def _tap(self, event: Any) -> None:
        """Follow the nearest data point, and the one chosen before it."""
        if self._lesson is None or event.x is None or event.y is None:
            return
        distance = np.linalg.norm(self._lesson.problem.data.points.numpy() - [event.x, event.y], axis=1)
        self._chosen = [*self._chosen[-1:], int(np.argmin(distance))]
        self._draw()

    def _say(self, words: str, tone: str) -> None:
        look = f"background:{_TONES[tone]};border-radius:4px;padding:6px 9px;line-height:1.35"
        self.message.object = f'<div role="status" class="{tone}" style="{look}">{html.escape(words)}</div>'

    @staticmethod
    def _post_to(document: Any) -> Callable[[Callable[[], None]], None]:
        def post(call: Callable[[], None]) -> None:
            document.add_next_tick_callback(call)

        return post


def _number(name: str, value: float) -> Any:
    """A field that takes any number: what is out of range is said in words, when it is used."""
    least, most = RANGES[name]
    words = f"{_NUMBERS[name]} ({least:g} to {most:g})" if name != "seed" else _NUMBERS[name]
    kind, step = (pn.widgets.FloatInput, 0.05) if isinstance(value, float) else (pn.widgets.IntInput, 1)
    return kind(name=words, value=value, step=0.005 if name == "weight_decay" else step, width=_SIDE)


def _captioned(plot: Any, text: str) -> Any:
    caption = pn.pane.HTML(text, width=_PLOT - 20, styles={"font-size": "12.5px", "line-height": "1.35"})
    return pn.Column(pn.pane.Bokeh(plot), caption, width=_PLOT)


def _numbers(found: Frames) -> str:
    """The line above the plots: J four ways, and whether equation and network agree."""
    low, high = found.chain.interval
    cells = (
        ("J, equation", f"{found.pde:.4f}"),
        ("J, network", f"{found.chain.value:.4f} &plusmn; {(high - low) / 2:.4f}"),
        ("J<sub>0</sub>, noise off", f"{found.loss:.4f}"),
        ("R", f"{found.regulariser:.4f}"),
        ("J<sub>0</sub> + R", f"{found.loss + found.regulariser:.4f}"),
    )
    told = "".join(f'<span style="margin-right:22px">{name} <b>{value}</b></span>' for name, value in cells)
    if found.agrees:
        return told
    return (
        f'{told}<br><span style="color:#A84A00">Equation and network differ by more than 5%: at this rate '
        "the steps are too large for the modified equation, or the mesh too coarse.</span>"
    )
