"""The CUDA engine: passes over a sequence on an NVIDIA GPU.

engine.py    host code: products by the array library, one launch of a gate kernel a step
   |
gates.py     the gate kernels of a cell, made from its own functions
lanes.py     what those functions compute with: some numbers side by side
build.py     from a kernel to a cubin, with or without a GPU, kept on disk
target.py    which Numba compiles for GPUs here, and all in which they differ
"""
