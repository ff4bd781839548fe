"""Smaller relatives of the GRU (``gru.py``); z is the share of the new state throughout."""

from ..functions import relu, sigmoid, tanh
from .decorator import cell


def forgotten(f, h):
    return sigmoid(f) * h


@cell(second_product="a", operand=forgotten)
def mgu(f, a, h):
    """Minimal gated unit: one gate does what z and r do (Zhou et al. 2016)."""
    f, new = sigmoid(f), tanh(a)
    return (1 - f) * h + f * new


@cell
def light_gru(z, a, h):
    """Light GRU: no reset gate, relu (Ravanelli et al. 2018, without batch normalisation)."""
    z, new = sigmoid(z), relu(a)
    return (1 - z) * h + z * new


def reset_by_h_and_bias(r, b_r, h):
    r = sigmoid(r + b_r)
    return r * h


@cell(recurrent_only="z r", weights="b_z b_r", second_product="a", operand=reset_by_h_and_bias)
def gru1(z, r, a, b_z, b_r, h):
    """GRU1: gates from the state and a bias (Dey & Salem 2017)."""
    z, new = sigmoid(z + b_z), tanh(a)
    return (1 - z) * h + z * new


def reset_by_h(r, h):
    r = sigmoid(r)
    return r * h


@cell(recurrent_only="z r", second_product="a", operand=reset_by_h)
def gru2(z, r, a, h):
    """GRU2: gates from the state alone (Dey & Salem 2017)."""
    z, new = sigmoid(z), tanh(a)
    return (1 - z) * h + z * new


def reset_by_bias(b_r, h):
    r = sigmoid(b_r)
    return r * h


@cell(weights="b_z b_r", second_product="a", operand=reset_by_bias)
def gru3(a, b_z, b_r, h):
    """GRU3: gates that are a bias, the same at every step (Dey & Salem 2017)."""
    z, new = sigmoid(b_z), tanh(a)
    return (1 - z) * h + z * new
