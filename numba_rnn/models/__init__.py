"""Models made of layers."""

from .rnnlm import Rnnlm
from .seq2seq import Seq2seq
from .sequential import Sequential

__all__ = ["Rnnlm", "Seq2seq", "Sequential"]
