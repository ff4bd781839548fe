"""Arrays in, arrays out: the recurrent kernels of numba_rnn.

``cells/``        the gate arithmetic of each cell, forward and backward, written once
``functions.py``  sigmoid, tanh, relu and their derivatives
``reference.py``  the NumPy engine: the specification
``cpu/``          the Numba engine

Nothing in here imports from the rest of ``numba_rnn``.
"""
