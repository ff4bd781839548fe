"""torch.nn.RNN, LSTM and GRU whose forward and backward are those of numba_rnn's layers.

They are subclasses that differ in ``forward`` alone: parameters, their start and names, checks,
``state_dict`` and ``extra_repr`` are torch's own.
"""

from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ..kernels import cells
from ..kernels.cells import Cell, WrittenCell
from ..kernels.ragged import Ragged
from ..kernels.step_options import NO_OPTIONS, StepOptions
from ..layers import TimeRecurrent
from .autograd import FLOATS, is_exported, refuse_recording, run
from .steps import PLAIN, is_plain, is_plain_call, kind_of, run_step
from .weights import CellWeights, Form, TorchWeights

Tensors = tuple[torch.Tensor, ...]
OWN_NAMES = "_forms", "_sources", "_source"  # what a module keeps beside what torch's has


class _NotRecorded(torch.nn.Module):
    """A module that torch.jit.script and torch.fx.symbolic_trace refuse, with a remedy."""

    def __prepare_scriptable__(self) -> Any:
        refuse_recording()

    def _new_form(self, place: int) -> Form:
        """The form of the weights of one direction of one layer."""
        raise NotImplementedError

    def _form(self, place: int = 0) -> Form:
        """The same, made where it is needed first."""
        forms: dict[int, Form] = self.__dict__.setdefault("_forms", {})
        if place not in forms:
            forms[place] = self._new_form(place)
        return forms[place]

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes its own forms."""
        own: Any = super().__getstate__()  # type: ignore[no-untyped-call]
        return {name: value for name, value in own.items() if name not in OWN_NAMES}


class _Scriptable(torch.nn.Module):
    """A module in whose place torch.jit.script takes torch's own, with the same parameters.

    torch puts that into the model as well, as ``restore`` does.
    """

    def __prepare_scriptable__(self) -> Any:
        kinds = type(self).__mro__
        kind: Any = next(k for k in kinds if k.__module__ == torch.nn.RNNBase.__module__)
        theirs = kind.__new__(kind)
        own = {name: value for name, value in vars(self).items() if name not in OWN_NAMES}
        vars(theirs).update(own)
        return theirs


class _Runs(_Scriptable, _NotRecorded, torch.nn.RNNBase):
    """The forward of all three."""

    def forward(self, input: Any, hx: Any = None, resets: Any = None) -> Any:  # noqa: A002
        """Run the module, with the arguments and results of torch.nn.

        Parameters
        ----------
        input : (T, N, D) tensor or PackedSequence
            The inputs; (N, T, D) with batch_first, (T, D) without a batch.
        hx : tensor, or tuple of tensors for an LSTM, optional
            The initial state h_0, or (h_0, c_0), each (layers * directions, N, H); zeros if left
            out.
        resets : (T, N) bool tensor, optional
            Before steps where it is True the state is set to zeros, and gradients stop: where an
            episode begins. (N, T) with batch_first, (T,) without a batch; for a PackedSequence
            (T, N), T being its longest sequence. Backwards in time a sequence ends there.

        Returns
        -------
        output : tensor or PackedSequence
            The outputs of the last layer.
        h_n : tensor, or tuple of tensors for an LSTM
            The last state h_n, or (h_n, c_n), in the shapes of hx.
        """
        if not torch.compiler.is_compiling() and is_plain_call():
            found = None if resets is not None else self._one_step(input, hx)
            if found is not None:
                return found
        if isinstance(input, torch.fx.Proxy) or (is_exported() and resets is not None):
            refuse_recording()
        if is_exported():
            return super().forward(input, hx)  # torch's operators, which others know
        if torch._C._is_any_autocast_enabled():
            data = input.data if isinstance(input, PackedSequence) else input
            if torch.is_autocast_enabled(data.device.type):
                return self._autocast(input, hx, data, resets)
        return self._forward(input, hx, resets)

    def _autocast(
        self,
        input: Any,  # noqa: A002
        hx: Any,
        data: torch.Tensor,
        resets: Any,
    ) -> Any:
        """Inside torch.autocast: computed in the weights' dtype, and returned in torch.nn's."""
        device, inner = data.device.type, getattr(self, self._all_weights[0][0]).dtype
        outer = torch.get_autocast_dtype(device)
        if self.mode == "GRU" and device == "cpu":  # which torch does not cast there
            outer = data.dtype
        with torch.autocast(device, enabled=False):
            output, state = self._forward(input.to(inner), _to(hx, inner), resets)
        return output.to(outer), _to(state, outer)

    def _forward(self, input: Any, hx: Any, resets: Any) -> Any:  # noqa: A002
        of_kind = self._of_packed if isinstance(input, PackedSequence) else self._of_tensor
        output, states = of_kind(input, hx, resets)
        return output, tuple(states) if self.mode == "LSTM" else states[0]

    def _one_step(self, xs: Any, hx: Any) -> Any:
        """The results for a single step of time; None where it is not one, or not for steps."""
        if type(xs) not in PLAIN or not xs.is_cpu or xs.dtype not in FLOATS or self.proj_size:
            return None
        time, shape, dtype = int(self.batch_first), xs.shape, xs.dtype
        if len(shape) != 3 or shape[time] != 1 or shape[2] != self.input_size:
            return None
        kind, N = kind_of(self.mode), shape[1 - time]
        step = kind.rows(dtype)
        if step is None or not N:
            return None
        directions, count = 2 if self.bidirectional else 1, kind.states
        places, before = directions * self.num_layers, hx if count == 2 else (hx,)
        if hx is None:
            before = (xs.new_zeros((1, N, self.hidden_size)),) * count
        elif not isinstance(before, (tuple, list)) or len(before) != count:
            return None
        else:
            for state in before:
                if not is_plain(state, dtype) or state.shape != (places, N, self.hidden_size):
                    return None
        x, after, own = xs, [], self._parameters
        sources = self.__dict__.setdefault("_sources", {})
        for k in range(self.num_layers):
            if k and self.dropout and self.training:
                x = torch.nn.functional.dropout(x, self.dropout)
            outputs = []
            for place in range(k * directions, (k + 1) * directions):
                weights: Any = [
                    own[name] if name in own else getattr(self, name)
                    for name in self._all_weights[place]
                ]
                for weight in weights:
                    if type(weight) not in PLAIN:
                        return None
                if len(weights) == 2:
                    weights += None, None
                states = before
                if hx is not None and places > 1:
                    states = [state[place : place + 1] for state in before]
                new = run_step(kind, step, x, states, weights, sources, place)
                after.append(new)
                outputs.append(new[0])
            x = outputs[0] if directions == 1 else torch.cat(outputs, 2)
        if places == 1:
            states, x = after[0], x.clone()  # who changes the one in place keeps the other
        else:
            states = tuple([torch.cat(one) for one in zip(*after, strict=True)])
        return x.transpose(0, 1) if time else x, states if count == 2 else states[0]

    def _of_packed(
        self, packed: PackedSequence, hx: Any, resets: Any
    ) -> tuple[PackedSequence, Tensors]:
        order, back = packed.sorted_indices, packed.unsorted_indices
        state = self._states(hx, 3, order)
        self._check(packed.data, state, packed.batch_sizes)
        if resets is None:
            hs, states = self._run(packed.data, state, [packed.batch_sizes] * 2)
        else:
            xs, lengths = _padded(packed.data, packed.batch_sizes)
            flags = _flags(resets, xs.shape[1::-1], 1)
            flags = flags if order is None else flags[order.cpu().numpy()]
            there = np.arange(xs.shape[1]) < lengths.numpy()[:, None]
            # behind its end a row keeps its state
            steps = self._directions(there, flags & there)
            hs, states = self._run(xs, state, steps, lengths)
            hs = _packed(hs, lengths)
        output = PackedSequence(hs, packed.batch_sizes, order, back)
        return output, tuple(_reordered(s, back) for s in states)

    def _of_tensor(self, xs: torch.Tensor, hx: Any, resets: Any) -> tuple[torch.Tensor, Tensors]:
        axes, batch = xs.dim(), 0 if self.batch_first else 1
        if axes not in (2, 3):
            raise ValueError(f"{type(self).__name__}: expected input of 2 or 3 axes, got {axes}")
        xs = xs if axes == 3 else xs.unsqueeze(batch)
        state = self._states(hx, axes, None)
        self._check(xs, state, None)
        if axes == 2 and isinstance(resets, torch.Tensor) and resets.dim() == 1:
            resets = resets.unsqueeze(batch)
        flags = _flags(resets, xs.shape[:2], batch)
        hs, states = self._run(xs.transpose(0, batch), state, self._directions(None, flags))
        # step by step in memory, as torch.nn's output is: dropout draws in this order
        output = hs.transpose(0, 1).contiguous().transpose(0, 1 - batch)
        if axes == 3:
            return output, states
        return output.squeeze(batch), tuple(s.squeeze(1) for s in states)

    def _states(self, hx: Any, axes: int, order: Any) -> Tensors | None:
        """The given states (layers * directions, N, H) in the order of the rows, or None."""
        if hx is None:
            return None
        if self.mode == "LSTM" and (not isinstance(hx, (tuple, list)) or len(hx) != 2):
            raise ValueError("LSTM: expected hx (h_0, c_0)")
        given = tuple(hx) if self.mode == "LSTM" else (hx,)
        if any(s.dim() != axes for s in given):
            raise ValueError(
                f"hx: expected states of {axes} axes for an input "
                f"{'without' if axes == 2 else 'with'} a batch, got {given[0].dim()}"
            )
        return tuple(_reordered(s.unsqueeze(1) if axes == 2 else s, order) for s in given)

    def _check(self, xs: torch.Tensor, state: Tensors | None, batch_sizes: Any) -> None:
        """As torch.nn does it."""
        given: Any = state
        if state is None:
            self.check_input(xs, batch_sizes)
        else:
            self.check_forward_args(xs, given if self.mode == "LSTM" else given[0], batch_sizes)

    def _run(
        self,
        xs: torch.Tensor,
        state: Tensors | None,
        directions: list[Any],
        lengths: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Tensors]:
        """xs (N, T, D) -> the last layer's hs, and the states after (layers * directions, N, ·).

        directions  the options of the steps in each direction; or the batch sizes of a
                    PackedSequence, whose data xs is, and hs
        lengths     (N,) from the longest down; None: all T
        """
        after: list[Tensors] = []
        turned = None
        if self.bidirectional and xs.dim() == 2:
            turned = torch.from_numpy(Ragged.of_counts(directions[0].numpy()).turned)
        for k in range(self.num_layers):
            if k and self.dropout and self.training:
                xs = self._dropped(xs, lengths)
            xs, last = self._layer(k, xs, state, directions, turned)
            after += last
        return xs, tuple(torch.stack(one) for one in zip(*after, strict=True))

    def _directions(self, there: Any, resets: Any) -> list[StepOptions]:
        """The options of the steps in each direction; there, resets: (N, T) arrays, or None."""
        directions = [_options(there, resets)]
        if self.bidirectional:
            back = None if resets is None else _seen_from_the_end(resets)
            directions.append(_options(None if there is None else there[:, ::-1], back))
        return directions

    def _dropped(self, xs: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        """Dropout between two layers: of the numbers, and in the order, that torch.nn drops in."""
        drop = torch.nn.functional.dropout
        if xs.dim() == 2:
            return drop(xs, self.dropout)
        if lengths is None:
            return drop(xs.transpose(0, 1).contiguous(), self.dropout).transpose(0, 1)
        sizes = (lengths > torch.arange(xs.shape[1])[:, None]).sum(1)
        return _padded(drop(_packed(xs, lengths), self.dropout), sizes)[0]

    def _layer(
        self,
        k: int,
        xs: torch.Tensor,
        state: Tensors | None,
        steps: list[Any],
        turned: torch.Tensor | None,
    ) -> tuple[torch.Tensor, list[Tensors]]:
        """Layer k in all directions: xs -> hs, and the states after each direction.

        turned  where the rows of a PackedSequence are when time runs backwards
        """

        def turn(rows: torch.Tensor) -> torch.Tensor:
            return rows.flip(1) if turned is None else rows.index_select(0, turned)

        directions = 2 if self.bidirectional else 1
        outputs, after = [], []
        for direction in range(directions):
            place = k * directions + direction
            before = None if state is None else [s[place] for s in state]
            weights = [getattr(self, name) for name in self._all_weights[place]]
            seen, options = turn(xs) if direction else xs, steps[direction]
            hs, last = run(self, place, seen, before, weights, options)
            outputs.append(turn(hs) if direction else hs)
            after.append(last)
        return outputs[0] if directions == 1 else torch.cat(outputs, -1), after

    def _new_form(self, place: int) -> Form:
        family = "rnn" if self.mode.startswith("RNN") else self.mode.lower()
        activation = "relu" if self.mode == "RNN_RELU" else "tanh"
        names = [name.rpartition("_l")[0] for name in self._all_weights[place]]
        return TorchWeights(family, activation, names)


class _RunsCell(_Scriptable, torch.nn.RNNCellBase):
    """The forward of the cells: a step of its own where torch runs operations as they come.

    Elsewhere (torch.compile, torch.func, autocast, other devices and dtypes, wrong arguments) the
    operators of torch's cell do, with all their rules and errors.
    """

    _mode = ""

    def forward(self, input: Any, hx: Any = None) -> Any:  # noqa: A002 (torch's name)
        """Run a step, with the arguments and results of torch.nn.

        Parameters
        ----------
        input : (N, D) or (D,) tensor
            The input.
        hx : tensor, or tuple of tensors for an LSTM, optional
            The state before the step: h, or (h, c), each (N, H) or (H,); zeros if left out.

        Returns
        -------
        tensor, or tuple of tensors for an LSTM
            The state after the step, in the shapes of hx.
        """
        if not torch.compiler.is_compiling() and is_plain_call():
            new = self._step(input, hx)
            if new is not None:
                return new
        return super().forward(input, hx)

    def _step(self, x: Any, hx: Any) -> Any:
        """The state after the step; None where it is for torch's cell."""
        if type(x) not in PLAIN or not x.is_cpu or x.dtype not in FLOATS:
            return None
        if x.dim() == 1:
            return self._step_of_one(x, hx)
        kind, dtype, shape = kind_of(self._mode or self.nonlinearity), x.dtype, x.shape
        step = kind.rows(dtype)
        if step is None or len(shape) != 2 or not shape[0] or shape[1] != self.input_size:
            return None
        shape, count = (shape[0], self.hidden_size), kind.states
        if hx is None:
            states: Any = (x.new_zeros(shape),) * count
        else:
            states = hx if count == 2 else (hx,)
            if len(states) != count:
                return None
            for state in states:
                if not is_plain(state, dtype) or state.shape != shape:
                    return None
        own = self._parameters
        weights = [own[name] if name in own else getattr(self, name) for name in _OF_A_CELL]
        for weight in weights:
            if type(weight) not in PLAIN and weight is not None:
                return None
        new = run_step(kind, step, x, states, weights, self.__dict__)
        return new if count == 2 else new[0]

    def _step_of_one(self, x: torch.Tensor, hx: Any) -> Any:
        """The same without a batch."""
        states = hx if isinstance(hx, (tuple, list)) else () if hx is None else (hx,)
        if any(type(s) not in PLAIN or s.dim() != 1 for s in states):
            return None
        rows = [state.unsqueeze(0) for state in states]
        given = rows if isinstance(hx, (tuple, list)) else rows[0] if rows else None
        new = self._step(x.unsqueeze(0), given)
        if isinstance(new, tuple):
            return tuple(s.squeeze(0) for s in new)
        return None if new is None else new.squeeze(0)

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes a source of its own."""
        own: Any = super().__getstate__()  # type: ignore[no-untyped-call]
        return {name: value for name, value in own.items() if name not in OWN_NAMES}


_OF_A_CELL = "weight_ih", "weight_hh", "bias_ih", "bias_hh"


class RNNCell(_RunsCell, torch.nn.RNNCell):
    """torch.nn.RNNCell on the engines of numba_rnn, with the same arguments.

    Examples
    --------
    >>> import torch
    >>> RNNCell(3, 5)(torch.ones(2, 3)).shape
    torch.Size([2, 5])
    """


class LSTMCell(_RunsCell, torch.nn.LSTMCell):
    """torch.nn.LSTMCell on the engines of numba_rnn, with the same arguments.

    Examples
    --------
    >>> import torch
    >>> h, c = LSTMCell(3, 5)(torch.ones(2, 3))
    >>> h.shape, c.shape
    (torch.Size([2, 5]), torch.Size([2, 5]))
    """

    _mode = "LSTM"


class GRUCell(_RunsCell, torch.nn.GRUCell):
    """torch.nn.GRUCell on the engines of numba_rnn, with the same arguments.

    Examples
    --------
    >>> import torch
    >>> GRUCell(3, 5)(torch.ones(2, 3)).shape
    torch.Size([2, 5])
    """

    _mode = "GRU"


def _to(state: Any, dtype: torch.dtype) -> Any:
    """A state in another dtype."""
    if isinstance(state, (tuple, list)):
        return tuple(_to(one, dtype) for one in state)
    return state.to(dtype) if isinstance(state, torch.Tensor) else state


def _reordered(state: torch.Tensor, order: Any) -> torch.Tensor:
    return state if order is None else state.index_select(1, order)


# As torch's functions do it, which refuse a batch of no rows, or lose its gradient.


def _padded(data: torch.Tensor, sizes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The data of a PackedSequence by length as rows (N, T, ·), and their lengths (N,)."""
    if not len(data):
        return data[:, None].expand(-1, len(sizes), -1), sizes[:0]
    return pad_packed_sequence(PackedSequence(data, sizes), batch_first=True)


def _packed(xs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Rows (N, T, ·) as the data of a PackedSequence."""
    if not len(xs):
        return xs.flatten(0, 1)
    return pack_padded_sequence(xs, lengths, batch_first=True).data


def _options(mask: Any, resets: Any) -> StepOptions:
    return NO_OPTIONS if mask is None and resets is None else StepOptions(mask, resets)


def _flags(resets: Any, shape: Any, batch: int) -> Any:
    """Resets as an array (N, T); shape: as they are given, with N at the place ``batch``."""
    if resets is None:
        return None
    if not isinstance(resets, torch.Tensor):
        raise TypeError(f"resets: expected a bool tensor, got {type(resets).__name__}")
    if resets.dtype is not torch.bool:
        raise TypeError(f"resets: expected a bool tensor, got {resets.dtype}; resets.bool() is one")
    if resets.shape != shape:
        raise ValueError(
            f"resets: expected shape {tuple(shape)}, a flag for each step and row of the input, "
            f"got {tuple(resets.shape)}"
        )
    flags = resets.detach().cpu()
    return (flags if batch == 0 else flags.t()).contiguous().numpy()


def _seen_from_the_end(resets: Any) -> Any:
    """The resets of the other direction, backwards in time: after a step, there before it."""
    behind = np.zeros_like(resets)
    behind[:, :-1] = resets[:, 1:]
    return behind[:, ::-1]


class RNN(_Runs, torch.nn.RNN):
    """torch.nn.RNN on the engines of numba_rnn, with the same arguments.

    Examples
    --------
    >>> import torch
    >>> RNN(3, 5, nonlinearity="relu")(torch.ones(7, 2, 3))[0].shape
    torch.Size([7, 2, 5])
    """


class LSTM(_Runs, torch.nn.LSTM):
    """torch.nn.LSTM on the engines of numba_rnn, with the same arguments, ``proj_size`` included.

    Examples
    --------
    >>> import torch
    >>> LSTM(3, 5, num_layers=2, bidirectional=True)(torch.ones(7, 2, 3))[0].shape
    torch.Size([7, 2, 10])
    """


class GRU(_Runs, torch.nn.GRU):
    """torch.nn.GRU on the engines of numba_rnn, with the same arguments.

    Examples
    --------
    >>> import torch
    >>> GRU(3, 5, batch_first=True)(torch.ones(2, 7, 3))[0].shape
    torch.Size([2, 7, 5])
    """


class Recurrent(_NotRecorded):
    """A layer of any cell of numba_rnn, by name or your own, as a PyTorch module.

    Parameters
    ----------
    cell : str, Cell or WrittenCell
        The cell, or its name.
    input_size : int
        D, the number of features of an input.
    hidden_size : int
        H, the number of units.
    batch_first : bool, default True
        True: inputs are (N, T, D), as everywhere in numba_rnn. False: (T, N, D).
    device : torch.device or str, optional
        The device of the parameters.
    dtype : torch.dtype, optional
        torch.float32 or torch.float64; torch's default dtype if left out.

    Attributes
    ----------
    Wx, Wh, b, w : torch.nn.Parameter
        The parameters of the cell: Wx (D, G H), Wh (H, G H), b and w, as far as the cell has them;
        see ``cell.shapes(D, H)``.

    Examples
    --------
    >>> import torch
    >>> module = Recurrent("mgu", 3, 5)
    >>> hs, (h,) = module(torch.ones(2, 7, 3))
    >>> hs.shape, h.shape
    (torch.Size([2, 7, 5]), torch.Size([2, 5]))
    """

    def __init__(
        self,
        cell: str | Cell | WrittenCell,
        input_size: int,
        hidden_size: int,
        *,
        batch_first: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.cell, self.batch_first = cells.get(cell), bool(batch_first)
        self.input_size, self.hidden_size = input_size, hidden_size
        for name, shape in self.cell.shapes(input_size, hidden_size).items():
            empty = torch.empty(shape, device=device, dtype=dtype or torch.get_default_dtype())
            self.register_parameter(name, torch.nn.Parameter(empty))
        self.reset_parameters()

    def _new_form(self, place: int) -> Form:
        return CellWeights(self.cell)

    def reset_parameters(self) -> None:
        """Draw new parameters, as ``TimeRecurrent.create`` does, from torch's generator."""
        seed = int(torch.randint(2**62, ()))
        layer = TimeRecurrent.create(
            self.input_size, self.hidden_size, cell=self.cell, rng=seed, dtype="float64"
        )
        with torch.no_grad():
            for param, start in zip(self.parameters(), layer.params, strict=True):
                param.copy_(torch.from_numpy(start))

    def extra_repr(self) -> str:
        """Return the arguments for the module's repr.

        Returns
        -------
        str
            Cell, input size and hidden size.
        """
        return f"{self.cell.name}, {self.input_size}, {self.hidden_size}"

    def forward(self, xs: torch.Tensor, state: Any = None, mask: Any = None) -> Any:
        """Run the layer over a block of time.

        Parameters
        ----------
        xs : (N, T, D) tensor
            The inputs; (T, N, D) with batch_first=False.
        state : tuple of (N, H) tensors, optional
            The initial states of the cell; zeros if left out.
        mask : (N, T) bool tensor, optional
            Steps where it is False are left out.

        Returns
        -------
        hs : (N, T, H) tensor
            The hidden state after every step; (T, N, H) with batch_first=False.
        state : tuple of (N, H) tensors
            The states of the cell after the last step.
        """
        if isinstance(xs, torch.fx.Proxy):
            refuse_recording()
        rows = xs if self.batch_first else xs.transpose(0, 1)
        present = _options(None if mask is None else mask.cpu().numpy(), None)
        hs, after = run(self, 0, rows, state, list(self.parameters()), present)
        return hs if self.batch_first else hs.transpose(0, 1), after
