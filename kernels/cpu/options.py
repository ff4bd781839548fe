"""How the engine's functions are compiled."""

COMPILED = {
    "cache": True,  # compiled code is kept on disk and found again by the next process
    "nogil": True,
    "error_model": "numpy",  # no test for division by zero, which would forbid vector code
}
