"""Models made of layers."""

from .rnnlm import Rnnlm
from .sequential import Sequential

__all__ = ["Rnnlm", "Sequential"]
