"""Arrays in, arrays out: the recurrent kernels of numba_rnn.

``cells/``            the gate arithmetic of each cell, forward and backward, written once
``functions.py``      the functions that cells are written with: sigmoid, exp, where and others
``autodiff/``         the functions of a cell from one plain function
``engine.py``         the interface: all that a layer may ask of any engine
``reference.py``      the NumPy engine: the specification
``step_options.py``   the options of a step: masks, resets, zoneout ...
``step.py``           what they do, forward and backward, for every engine
``gradient_check.py`` a cell's gradients against central differences
``device_engine.py``  engines whose arrays are not in host memory
``counter_rng.py``    random masks that are computed where they are needed
``emitted_draws.py``  the same in compiled code
``layout.py``         where compiled engines keep a cell's gates
``vectors.py``        the operators of compiled engines' vectors
``once.py``           things that are made once in a process, whatever threads and forks there are
``disk_cache.py``, ``fingerprint.py``  compiled code on disk, and its key
``cpu/``              the Numba engine
``cuda/``             the CUDA engine: CuPy, and kernels by Numba CUDA

Nothing in here imports from the rest of ``numba_rnn``.
"""
