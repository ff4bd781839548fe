"""The former names of ``step_options.py``, of version 0.1; they go in 0.3."""

import warnings

from .step_options import NO_OPTIONS as PLAIN
from .step_options import StepOptions as Steps

__all__ = ["PLAIN", "Steps"]

warnings.warn(
    "kernels.steps is deprecated and goes in 0.3: use kernels.step_options, with StepOptions for "
    "Steps and NO_OPTIONS for PLAIN",
    DeprecationWarning,
    stacklevel=2,
)
