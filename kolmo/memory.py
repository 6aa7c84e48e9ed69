"""How much memory a computation will take, told before it is allocated.

Estimates are in bytes, of the largest amount held at one time, and good to a factor of about two: they are
there to refuse what cannot work, in one line with the remedy, instead of being killed half-way.
The constants were measured on both backends (tests/test_hostile.py measures them again).
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

from kolmo.errors import InputError

#: bytes for each node of a space, its matrices and the map from coefficients, by dimension: kept, and
#: while the map is made
_SPACE, _MAP = {1: 1_000, 2: 3_600, 3: 27_000}, {1: 2_000, 2: 9_500, 3: 40_000}
#: neighbours of a node on the Kuhn mesh, itself included
_NEIGHBOURS = {1: 3, 2: 7, 3: 15}
#: numbers kept for each hidden value on its way through a block and back
_HIDDEN = 6
#: hidden values whose derivatives are kept; above, kolmo.pde evaluates them again
_STORED = 8_000_000
#: copies of the weights in an optimiser: L-BFGS with 20 pairs, its point, direction and gradient
PAIRS = 2 * 20 + 6
#: paths simulated at once (kolmo.chain), and what is kept of each block until its turn comes
_BLOCK, _PER_BLOCK = 4096, 2_000

#: where a container says what it may use and uses: limit, usage (cgroup v2, v1)
_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)

#: when `lately_available` looked last, and what it saw
_looked_up = [-math.inf, 0.0]


def available() -> int:
    """Bytes that can be had on this machine without swapping, and in this container."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    table = Path("/proc/meminfo")  # Linux
    if table.exists():
        rows = dict(row.split(":") for row in table.read_text().splitlines())
        found = int(rows["MemAvailable"].split()[0]) * 1024
    for limit, usage in _LIMITS:
        if Path(limit).exists() and Path(usage).exists():
            most = Path(limit).read_text().strip()
            if most != "max":
                found = min(found, max(0, int(most) - int(Path(usage).read_text())))
    return found


def lately_available() -> int:
    """What was available when it was last looked up, at most a second ago: for those who ask all the time."""
    now = time.monotonic()
    if now > _looked_up[0] + 1:
        _looked_up[:] = [now, available()]
    return int(_looked_up[1])


def require(needed: int, what: str, remedy: str) -> None:
    """Raise InputError where `needed` bytes are more than available; what: that needs them, and how many."""
    free = available()
    if needed > free:
        raise InputError(f"{what}: about {gib(needed)} of memory, {gib(free)} are available; {remedy}")


def gib(count: int) -> str:
    """Bytes in words."""
    return f"{count / 2**30:.3g} GiB"


def mesh(dim: int, cells: int) -> int:
    """The Kuhn mesh of a box while it is made: vertices, simplices, and a copy of each."""
    return 2 * 8 * (dim * (cells + 1) ** dim + (dim + 1) * math.factorial(dim) * cells**dim)


def states(nodes: int, substeps: int) -> int:
    """What a march keeps for its adjoint: in every substep two values and two marks a node."""
    return nodes * substeps * 2 * (8 + 1)


def equation(
    dim: int, cells: int, depth: int, width: int, substeps: int | None = None, units: bool = True
) -> int:
    """One solution of the Kolmogorov equation and its gradient on a mesh.

    substeps: of all layers. units: whether hidden units are held at all nodes, as torch's derivatives do.
    """
    nodes, d = (cells + 1) ** dim, dim
    layer = 20 * _NEIGHBOURS[dim] + 32 * (d + d * d)  # the matrix and its transpose; drift and diffusion
    marched = _SPACE[dim] * nodes + depth * layer * nodes
    marched += states(nodes, depth if substeps is None else substeps)
    hidden = nodes * width + min(nodes * width * depth, _STORED) if units else 0
    return max(_MAP[dim] * nodes, marched) + 8 * _HIDDEN * hidden


def recursion(dim: int, cells: int, stages: int = 1) -> int:
    """The exact recursion on a tensor grid that keeps this many layers."""
    kept = 64 if dim == 2 else 32  # masks in the plane have coefficients along one axis as well
    return (cells + 3) ** dim * (8 * dim + kept * 4 + (kept + 8 * dim) * stages)


def network(dim: int, width: int, depth: int, copies: int = 2) -> int:
    """Weights of a residual network, and as many copies of them."""
    return 8 * copies * depth * width * (2 * dim + 1)


def sample(points: int, paths: int, width: int) -> int:
    """The chain's paths: blocks simulated at once by all threads, and the list of blocks."""
    at_once = max(_BLOCK, points) * (os.cpu_count() or 1)
    return 8 * _HIDDEN * at_once * width + paths // max(_BLOCK, points) * (_PER_BLOCK + 16 * points)


def training(points: int, paths: int, dim: int, width: int, depth: int, steps: int) -> int:
    """Adam on the chain: all layers of `paths` paths from each point for the gradient, and the history."""
    return 8 * _HIDDEN * points * paths * (width + dim) * depth + network(dim, width, depth, 6) + 250 * steps
