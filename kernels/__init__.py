"""Arrays in, arrays out: the recurrent kernels of numba_rnn.

``cells/``        the gate arithmetic of each cell, forward and backward, written once
``functions.py``  what cells are written with: sigmoid, exp, maximum, where and others
``derivation/``   the functions of a cell from one plain function
``reference.py``  the NumPy engine: the specification
``device.py``     what engines share whose arrays are not in host memory
``steps.py``      masks, resets, zoneout: what may be particular about steps
``draws.py``      random masks that are computed where they are needed
``layout.py``     where compiled engines keep a cell's gates
``once.py``       what is made once in a process, whatever threads and forks there are
``disk_cache.py``, ``fingerprint.py``  compiled code on disk, and what it was compiled from
``cpu/``          the Numba engine
``cuda/``         the CUDA engine: CuPy, and kernels by Numba CUDA

Nothing in here imports from the rest of ``numba_rnn``.
"""
