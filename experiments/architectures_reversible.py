r"""RevNet is exactly invertible: features from the last layer back to the first, and gradients on that way.

p_{k+1} = p_k + h f_k(q_k) is undone by p_k = p_{k+1} - h f_k(q_k) whatever f_k is, up to rounding, which the
layers pass on like any other disturbance. So gradients need no features but the last ones: with
`RevNet(recompute=True)` each layer's are computed again on the way back. What autograd keeps by itself, it
keeps for every layer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from kolmo.architectures import RevNet, TwoLayer
from kolmo.checkpoint import Checkpoint, Memo, State
from kolmo.experiments.architectures_part import Table
from kolmo.experiments.claims import Claim
from kolmo.experiments.progress import Progress
from kolmo.stream import mix

DEPTHS, DEPTHS_QUICK = (8, 32, 128, 512), (8, 32, 128)
#: features of each half, units of a block, points
HALF, UNITS, POINTS = 4, 16, 64
#: largest differences, features being of size 1; growth of what is kept from the first to the last depth
EXACT, SAME = 1e-12, 1.01


@dataclass(frozen=True)
class Inverted:
    """A network of one depth.

    features: largest difference of inverse(x_L) and x_0. gradients: of recomputed and kept gradients by x_0
    and all weights, largest relative to their largest entry. kept, recomputed: bytes held for the gradient.
    """

    features: float
    gradients: float
    kept: int
    recomputed: int


class Reversible:
    """found[L]; weights and points by the seed."""

    name = "reversible"

    def __init__(self, seed: int, quick: bool) -> None:
        self.seed = seed
        self.depths = DEPTHS_QUICK if quick else DEPTHS
        self.steps = len(self.depths)
        self.found: dict[int, Inverted] = {}

    def run(self, memo: Memo, progress: Progress) -> None:
        for depth in self.depths:
            kept = memo.remember(f"reversible-{depth}", partial(self._measured, depth))
            self.found[depth] = Inverted(**kept)
            progress.advance(f"RevNet, {depth} layers: inverted to {kept['features']:.0e}")

    def _measured(self, depth: int, checkpoint: Checkpoint) -> State:
        blocks = [TwoLayer.random(HALF, UNITS, seed=mix(self.seed, 2, k)) for k in range(2 * depth)]
        draw = torch.Generator().manual_seed(mix(self.seed, 3))
        x = torch.randn(POINTS, 2 * HALF, generator=draw, dtype=torch.float64)
        network = RevNet(blocks, 1 / depth)
        with torch.no_grad():
            features = float((network.inverse(network(x)) - x).abs().max())
        kept, bytes_kept = gradients(network, x)
        again, bytes_again = gradients(RevNet(blocks, 1 / depth, recompute=True), x)
        largest = max(float(g.abs().max()) for g in kept)
        apart = max(float((a - b).abs().max()) for a, b in zip(kept, again, strict=True)) / largest
        return asdict(Inverted(features, apart, bytes_kept, bytes_again))

    @property
    def finished(self) -> bool:
        return len(self.found) == len(self.depths)

    def claims(self) -> list[Claim]:
        if not self.finished:
            return []
        worst = {
            name: max(getattr(f, name) for f in self.found.values()) for name in ("features", "gradients")
        }
        first, last = (self.found[depth].recomputed for depth in (self.depths[0], self.depths[-1]))
        layers = f"up to {self.depths[-1]} layers"
        rows = [
            (f"RevNet, {layers}: features from the inverse", worst["features"], EXACT),
            (f"RevNet, {layers}: gradients without kept features, relative", worst["gradients"], EXACT),
            (f"RevNet, {layers}: growth of what recomputed gradients keep", last / first, SAME),
        ]
        return [Claim(text, value, f"<= {most:g}", value <= most) for text, value, most in rows]

    def results(self) -> list[dict[str, Any]]:
        return [{"depth": depth, **asdict(found)} for depth, found in self.found.items()]

    def tables(self) -> list[Table]:
        columns = ["L", "inverse off by", "gradients off by", "kept, kB", "recomputed, kB"]
        lines: list[list[object]] = [
            [d, f"{f.features:.0e}", f"{f.gradients:.0e}", f"{f.kept / 1e3:.0f}", f"{f.recomputed / 1e3:.0f}"]
            for d, f in self.found.items()
        ]
        return [("RevNet: its inverse, and gradients from the last features alone", columns, lines)]


def gradients(network: RevNet, x: Tensor) -> tuple[list[Tensor], int]:
    """Gradients of sum |x_L|^2 / 2 by x_0 and all weights, and bytes held for them beside the weights."""
    weights = list(network.parameters())
    start = x.clone().requires_grad_()
    known = {w.untyped_storage().data_ptr() for w in weights}
    held: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        features = network(start)
    found = torch.autograd.grad(features.square().sum() / 2, [start, *weights])
    return list(found), sum(held.values())
