"""The words of the page: what to look for, in the symbols of the documentation."""

from __future__ import annotations

INTRODUCTION = """
<h1>Noise in a residual network, as diffusion</h1>
<p>A residual network adds a small step in every layer, <i>X<sub>k+1</sub> = X<sub>k</sub> + h
f(X<sub>k</sub>)</i>; its features flow along an ordinary differential equation. Dropout makes the step
random with the same mean: the features diffuse, with a diffusion <i>a = h (1&minus;p)/p diag(f&sup2;)</i>
that is strongest where the network moves them most. The expected final loss <i>u<sub>y</sub>(x, t)</i> of
features <i>x</i> at depth <i>t</i> with label <i>y</i> solves a backward Kolmogorov equation,
<i>u<sub>t</sub> + b &middot; &nabla;u + &frac12; a : &nabla;&sup2;u = 0</i>, from the loss at <i>t = T</i>
back to the data at <i>t = 0</i>. Training chooses the weights so that <i>J = &Sigma;<sub>y</sub>
&lang;u<sub>y</sub>(&middot;, 0), &mu;<sub>y</sub>&rang;</i> is small.</p>
"""

VALUE = """<b>Value function u<sub>y</sub>(x, t)</b>: what features at x will have cost at the end. Move
the time from T to 0: the loss is carried back along the flow. More noise smooths it out. Line: the
decision, u<sub>0</sub> = u<sub>1</sub>."""

DENSITY = """<b>Density &rho;<sub>y</sub>(x, t)</b>: colours from the forward equation (root scale), dots
from the network itself, with fresh masks. They land on each other: the equation knows where noise sends
the data. Their final loss averages to J."""

PATHS = """<b>Single points</b>: the path without noise (thick) and with it (thin), up to the time chosen.
Near the decision noise sends some to the wrong side. Click near a data point to follow it."""

PENALTY = """<b>Where the penalty R acts</b>: to first order noise adds R = &frac12;
&int;&Sigma;<sub>y</sub>&lang;&rho;<sub>y</sub>, a : &nabla;&sup2;u<sub>y</sub>&rang; dt to the loss.
Violet: where the features pass with much noise and u is curved; green: where noise helps. Circles: the
terms at this time, by area."""

RATE = """<b>J at these weights</b> by the strength of the noise: the equation, the network by Monte Carlo
(95%), and J<sub>0</sub> + R, which parts from them as the noise grows."""

TRAINING = """<b>Training</b>: J by the equation plus weight decay, after every step of L-BFGS with exact
gradients."""
