"""The Numba engine: passes over a sequence, compiled for this CPU.

engine.py      arrays in, arrays out        streaming.py   the same for a stream, step by step
plans.py       what compiled code is to     packing.py     its weights, laid out once
               work on: sizes, addresses, memory
   |
schedule.py    the pass over time, chunk by chunk (start here: the picture of the data flow)
forward.py, backward.py    (for one sequence, in one function: fused_step.py)
   |   call, by address (kernel_abi.py),
   +-> gemm.py        matrix products: one tile, for any shape; of float32, float64, bfloat16.py
   |                  and int8.py, these by AMX too (amx.py); matrices to panels.py
   +-> gates.py       a step's arithmetic: the cell's own functions (tuple_io.py), on
   |                  vectors (simd.py, vector_functions.py); and the options of steps
   |                  (../step.py, option_io.py, option_memory.py)
   +-> layer_norm.py  between the two, for gates that are normalised over a row's units

gate_rows.py   a cell between products that the caller makes (gate_rows_kernels.py)
product.py     products of large matrices     } items, shared out by parallel_for.py
training.py    optimisers, norms, losses      }
ragged_rows.py rows of members that differ    }
               in length, to and from arrays  }
threads.py     a team that shares a pass
dropout.py     masks for weights and inputs
kernel_cache.py  kernels by their names: found on disk, or compiled now (compilation.py), for the
               processor of target.py

Modules that define kernels import Numba; those that call them by name import neither.
"""
