"""The Numba engine: the recurrent loop compiled, the gate arithmetic on SIMD vectors.

``simd.py``      a vector of lanes as a Numba type, its operators, sigmoid and tanh
``products.py``  small matrix products, register-blocked
``lowering.py``  a cell as Numba sees it: its functions, and its numbers in memory
``sequence.py``  the loop over time, for any cell
``engine.py``    the engine: large products by BLAS, the rest by the above
"""
