"""The chain's paths and their gradients as kernels: numba's on the CPU, Triton's on accelerators.

`chain.has_kernels` says for which problems; torch remains for all others, and as what the kernels are tested
against.
"""
