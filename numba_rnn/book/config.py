"""The book's ``common/config.py``.

GPU   read by the programs alone, which then hand their corpus to ``to_gpu``; NUMBA_RNN_BACKEND
      chooses the engine
"""

GPU = False
