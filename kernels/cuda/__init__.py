"""The CUDA engine: passes over a sequence on an NVIDIA GPU.

engine.py             host code: products by the array library, kernels for the steps between them
   |
persistent.py         one kernel for all steps, the recurrent weights on chip, tensor cores
tiling.py             how that kernel is cut, and whether it pays
gates.py              a kernel for one step, between two products
layer_norm.py         kernels for gates that are normalised over a row's units, before and after
                      those
gemm_3xtf32.py        float32 products of large matrices on tensor cores
training_kernels.py   kernels of training: an optimiser's rule, an embedding's gradient
   |
step_codegen.py       a cell's step as lines of a kernel, and where its numbers lie
pass_arrays.py        the arrays of a pass, by the names that kernels have for them
kernel.py             what a kernel is: its text, what it refers to, how it is launched
   |
build.py              from a kernel to a cubin, with or without a GPU, kept on disk
vector_type.py        what a cell's functions compute with: some numbers side by side
ptx.py                instructions that Numba does not know, one line each
numba_cuda_compat.py  which Numba compiles for GPUs here, and all in which they differ
cupy_gpu.py           CuPy: arrays, launches, what the device has room for

Kernels are plain Python functions, so the tests run them in an emulator, on machines without a GPU.
"""
