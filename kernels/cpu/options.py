"""How the engine's functions are compiled."""

from numba import njit


def _can_cache() -> bool:
    """Whether Numba finds a folder that it may write compiled code to."""
    try:
        njit(cache=True)(_can_cache)
    except RuntimeError:  # neither beside the package, nor in the user's cache folder
        return False
    return True


COMPILED = {
    "cache": _can_cache(),  # on disk, where the next process finds it
    "nogil": True,
    "error_model": "numpy",  # no test for division by zero, which would forbid vector code
}

# For functions that are part of others: their callers' fingerprint covers them, their own file's
# date does not, so they are cached within their callers only.
COMPILED_INTO_CALLERS = {**COMPILED, "cache": False}
