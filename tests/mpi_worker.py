"""J and its gradient on as many processes as mpirun gives; rank 0 writes them. Run by test_adjoint.py.

Usage: mpirun -n N python mpi_worker.py OUTPUT.npz
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from problems import problem

from kolmo import noise
from kolmo.pde import BackwardKolmogorov, Explicit, Implicit

#: name -> (dimension, noise, cells, propagator)
CASES: dict[str, tuple[int, Any, int, Any]] = {
    "interval": (1, noise.BernoulliDropout(0.8), 64, Explicit()),
    "moons": (2, noise.BernoulliDropout(0.8), 16, Explicit()),
    "moons-full-diffusion": (2, noise.GaussianInjection(0.3), 16, Explicit()),
    "moons-implicit": (2, noise.GaussianInjection(0.3), 16, Implicit(2)),
    "moons-3d": (3, noise.BernoulliDropout(0.8), 6, Explicit()),
}


def results() -> dict[str, np.ndarray]:
    """J, d J / d W, d J / d b and d J / d V of every case, on dolfinx."""
    found: dict[str, np.ndarray] = {}
    for name, (dim, model, cells, propagator) in CASES.items():
        given = problem(dim, model, depth=4)
        equation = BackwardKolmogorov(
            given, cells=cells, half_width=3.0, backend="dolfinx", propagator=propagator, limit=False
        )
        loss = equation.expected_loss()
        loss.backward()
        found[f"{name}.processes"] = np.array(equation.space.processes)
        found[f"{name}.J"] = loss.detach().numpy()
        for key, parameter in given.network.named_parameters():
            assert parameter.grad is not None
            found[f"{name}.{key}"] = parameter.grad.numpy()
    return found


if __name__ == "__main__":
    import torch
    from mpi4py import MPI

    torch.set_num_threads(1)
    values = results()
    alike = MPI.COMM_WORLD.gather(values)
    if alike is not None:  # on rank 0
        for other in alike:  # every process holds the same J and gradient
            for key, value in values.items():
                np.testing.assert_allclose(other[key], value, rtol=1e-13, atol=1e-16)
        np.savez(sys.argv[1], **values)
