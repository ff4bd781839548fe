"""From the gate arithmetic of a cell, written once, to the functions of a ``Cell``.

``tracing.py``   runs a user's function once, on numbers that write down what is done with them
``graph.py``     what they wrote: every operation once
``gradient.py``  its derivative, with SymPy, and what forward has to save for it
``source.py``    Python source from a graph
``extremes.py``  what in a graph has no number where gates are shut or wide open

No engine needs anything in here, and SymPy is imported by nothing but a derivation.
"""
