"""Models made of layers."""

from .rnnlm import Rnnlm

__all__ = ["Rnnlm"]
