"""The book's ``common/np.py``: NumPy under the name np."""

import numpy as np

__all__ = ["np"]
