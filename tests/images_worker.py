"""A process of a data-parallel step, started by torchrun: `images_worker.py FILE`.

The first process writes the gradient of one batch, and what normalisations learnt of it, to FILE (npz).
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from kolmo.images import ImageNetwork, NetworkPlan, digits, parallel
from kolmo.stream import Stream

BATCH = 32


def gradient() -> dict[str, np.ndarray]:
    """Of the loss of a batch, of which this process has its part, in float64."""
    data = digits(0)
    plan = NetworkPlan("polynet", 14, 8, "between", 0.3)
    network = ImageNetwork(plan, 1, 10, seed=3).double().train()
    share = BATCH // parallel.count()
    own = slice(parallel.number() * share, (parallel.number() + 1) * share)
    images = data.normalised(data.train.images[:BATCH]).double()[own]
    stream = Stream(9, own.start, share, dtype=torch.float64)
    spread = parallel.spread(network, "cpu")
    with network.noise.sampling(stream):
        cross_entropy(spread(images), data.train.labels[:BATCH][own]).backward()
    found = {f"gradient {n}": p.grad.numpy() for n, p in network.named_parameters() if p.grad is not None}
    statistics = {f"statistic {n}": b.numpy() for n, b in network.named_buffers() if b.is_floating_point()}
    return {**found, **statistics}


if __name__ == "__main__":
    with parallel.joined("cpu"):
        found = gradient()
        if parallel.number() == 0:
            np.savez(sys.argv[1], **found)
