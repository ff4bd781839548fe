"""The base of the estimators: their parameters, the training loop, how they are pickled."""

import math
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, ParamSpec, Self, TypeVar

import numpy as np
from numpy.typing import DTypeLike
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ..backend import to_host
from ..kernels.cells import Cell, WrittenCell
from ..layers import TimeMSE
from ..optional_deps import optional_import
from ..terminal import progress_bar
from ..training import Optimiser, TrainingDiverged, clip_grads, optimisers
from ..training.clipping import global_norm
from ..training.history import epochs_since_best
from ..typing import AnyArray, Array, BoolArray
from ..validation import expect_float, expect_float_dtype, expect_int
from .frames import (
    TimeStep,
    are_names,
    called,
    columns_of,
    expect_column_order,
    expect_columns,
    expect_order,
    expect_step,
    index_of,
)
from .network import Network, expect_sizes
from .range_test import range_test
from .sequences import (
    SequenceDataset,
    Sequences,
    expect_finite,
    is_table,
    listed,
    mask_of,
    moments,
    pad,
    read_sequences,
    steps_of_table,
)

P = ParamSpec("P")
R = TypeVar("R")

_NETWORK = ("cell", "hidden_size", "layers", "bidirectional", "dropout", "per_step")


def all_or_nothing(fit: Callable[P, R]) -> Callable[P, R]:
    """A method that trains; where parameters or data do not fit the estimator stays as it was."""

    @wraps(fit)
    def fitting(*args: P.args, **options: P.kwargs) -> R:
        estimator: Any = args[0]
        before = dict(estimator.__dict__)
        try:
            return fit(*args, **options)
        except (TypeError, ValueError):
            estimator.__dict__.clear()
            estimator.__dict__.update(before)
            raise

    return fitting


class RecurrentEstimator(BaseEstimator):
    """Base class of the estimators: a recurrent network that is trained on sequences.

    Parameters
    ----------
    cell : str or cell, default "lstm"
        A name in ``numba_rnn.cells.names()``, or a cell of your own. For n_jobs and for pickle your
        cell must be in a module that other processes can import.
    hidden_size : int, default 32
        H, the number of units of each recurrent layer (in each direction).
    layers : int, default 1
        The number of recurrent layers.
    bidirectional : bool, default False
        Whether every layer reads in both directions.
    dropout : float, default 0.0
        The share of numbers dropped between layers and before the output.
    optimiser : str or callable, default "adam"
        "adam", "adamw", "rmsprop", "adagrad", "momentum" or "sgd", or a callable that takes lr and
        returns an optimiser, such as ``functools.partial(AdamW, weight_decay=0.1)``.
    lr : float or "auto", default 0.01
        The learning rate. "auto": ``fit`` looks for one by a range test, of 120 batches at most;
        it is in ``lr_``.
    batch_size : int or "auto", default 32
        The number of sequences in a batch. "auto": a sixteenth of the sequences, at least 8 and at
        most 32.
    max_epochs : int, default 100
        The number of times that all sequences are read.
    clip : float or None, default 1.0
        The largest global norm of the gradient; None: no clipping.
    early_stopping : bool, default False
        If True, a share of the data is held out. Training ends when the loss on it has not fallen
        for ``patience`` epochs, and the parameters with the lowest such loss are kept.
    validation_fraction : float, default 0.1
        The share that early_stopping holds out.
    patience : int, default 10
        The number of epochs without improvement that early_stopping allows.
    warm_start : bool, default False
        If True, ``fit`` continues from the parameters of the last fit.
    per_step : bool, default False
        True: y has a target for every step. False: y has one for each sequence.
    step_features : int, default 1
        The number of features of a step in a table (N, F); see ``numba_rnn.sklearn``.
    dtype : {"float32", "float64"} or None, default None
        The dtype of parameters, arithmetic and results; float32 is faster. None: the dtype of X in
        fit, or float64 if X has another dtype.
    verbose : bool, default False
        Whether to show a progress bar on stderr.
    random_state : int, RandomState or None, default None
        The same seed gives the same numbers, bit for bit on one engine and machine.
    """

    network_: Network
    _network_options: tuple[str, ...] = _NETWORK  # parameters of the estimator and the network
    _table: bool  # whether fit was given a table
    layout: str | None = None  # "ndt": features come before steps
    _may_miss = False  # whether X may hold NaN, for values that are missing
    _even = False  # whether the steps of a sequence are evenly spaced in time
    _columns: list[Any] | None = None  # those of fit's DataFrames
    _step: tuple[Any, ...] | None = None  # the time from one to the next, where fit was told

    def __init__(
        self,
        cell: str | Cell | WrittenCell = "lstm",
        *,
        hidden_size: int = 32,
        layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        optimiser: str | Callable[..., Optimiser] = "adam",
        lr: float | str = 0.01,
        batch_size: int | str = 32,
        max_epochs: int = 100,
        clip: float | None = 1.0,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 10,
        warm_start: bool = False,
        per_step: bool = False,
        step_features: int = 1,
        dtype: DTypeLike | None = None,
        verbose: bool = False,
        random_state: Any = None,
    ) -> None:
        self.cell = cell
        self.hidden_size = hidden_size
        self.layers = layers
        self.bidirectional = bidirectional
        self.dropout = dropout
        self.optimiser = optimiser
        self.lr = lr
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.clip = clip
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.warm_start = warm_start
        self.per_step = per_step
        self.step_features = step_features
        self.dtype = dtype
        self.verbose = verbose
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    # ---- X

    def _read(self, X: Any, *, reset: bool, least_steps: int = 1) -> Sequences:
        """X as sequences.

        reset   True: X is what the estimator is to be fitted on; else it must be of that kind
        """
        X, D = listed(X), expect_int("step_features", self.step_features)
        dtype: Any = [np.float64, np.float32]  # the first where X is of neither
        if self.dtype is not None:
            dtype = expect_float_dtype("dtype", self.dtype)
        if not reset:
            check_is_fitted(self)
            dtype = self.network_.dtype
        if isinstance(X, (list, tuple)) and not X:
            raise ValueError(
                "X: Found array with 0 sample(s), an empty list, while a minimum of 1 is "
                f"required by {type(self).__name__}."
            )
        step = self._expect_times(X, D, reset)
        table = is_table("X", X)
        if not reset and table != self._table:
            kinds = {True: "a table (N, F)", False: "sequences (N, T, D) or a list of (T, D)"}
            raise ValueError(f"X: expected {kinds[self._table]}, as in fit, got {kinds[table]}")
        if table:
            least = least_steps * D if reset else 1
            try:
                array = validate_data(
                    self, X, reset=reset, dtype=dtype, ensure_min_features=least,
                    ensure_all_finite="allow-nan" if self._may_miss else True,
                )  # fmt: skip
            except ValueError as error:
                expect_finite("X", X, np.asarray(X), dtype, error)
                raise
            except TypeError as error:
                if "NAType" in str(error):
                    error = TypeError(f"X: expected numbers, NaN where one is missing; {error}")
                raise error
            array = steps_of_table(array, D, self.layout)
        else:
            array = read_sequences("X", X, dtype, missing=self._may_miss)
            names = columns_of("X", X)
            features = array[0].shape[1]
            if reset:
                self.n_features_in_ = features
                self.__dict__.pop("feature_names_in_", None)
            elif features != self.n_features_in_:
                raise ValueError(
                    f"X has {features} features, but {type(self).__name__} is expecting "
                    f"{self.n_features_in_} features as input"
                )
            if not reset:
                expect_columns("X", names, self._columns)
            elif are_names(names):
                self.feature_names_in_ = np.array(names, object)
        if reset:
            self._table, self._step = table, None if step is None else tuple(step)
            self._columns = None if table else names
        return array

    def _expect_times(self, X: Any, features: int, reset: bool) -> TimeStep | None:
        """Refuse steps that are not in order, or not as far from each other as those of fit.

        Returns the time from a step to the next, that of the longest sequence.
        """
        even = self._even
        if isinstance(X, (list, tuple)):
            names = [called("X", X, k) for k in range(len(X))]
            steps = [
                expect_order(name, index_of(x), even=even) for name, x in zip(names, X, strict=True)
            ]
        else:
            names = ["X"]
            steps = [expect_column_order("X", X, even=even, features=features)]
        known = [
            (not step.of_numbers, step.number, -k, step)
            for k, step in enumerate(steps) if step is not None
        ]  # fmt: skip
        expected, of = None if self._step is None else TimeStep(*self._step), "in fit"
        if reset:
            *_, k, expected = max(known, default=(0, 0, None), key=lambda one: one[:3])
            of = f"in {names[-k]}"
        for name, step in zip(names, steps, strict=True):
            expect_step(name, step, expected, of)
        return expected

    # ---- training

    def _loss(self, scores: Array, ts: AnyArray, mask: BoolArray | None) -> tuple[float, Array]:
        """The mean loss of a batch and its gradient by the scores."""
        loss = TimeMSE()
        return float(loss.forward(scores, ts, mask)), loss.backward()

    def _begin(self, examples: SequenceDataset, outputs: int, anew: bool) -> None:
        """Make the network, or see that the one that is there fits."""
        first = examples.xs[0]
        config = {"input_size": first.shape[1], "output_size": outputs, "dtype": first.dtype.name}
        config |= {name: getattr(self, name) for name in self._network_options}
        config |= self._more_options(first.shape[1])
        if self.clip is not None:
            expect_float("clip", self.clip, 0, low_open=True)
        if anew:
            self._rng = np.random.default_rng(check_random_state(self.random_state).randint(2**31))
            self.network_ = Network(**config, rng=self._rng)
            if self.network_.scale is not None:
                self.network_.mean[:], self.network_.scale[:] = moments(examples)
            self._optimiser: Optimiser | None = None  # partial_fit's
            return
        for name, trained in self.network_.config.items():
            if (value := config.get(name, trained)) != trained:
                raise ValueError(
                    f"{name}: expected {trained!r}, as in the network that is trained "
                    f"further, got {value!r}"
                )

    def _more_options(self, features: int) -> dict[str, Any]:
        """Further arguments of the network, for so many features of a step."""
        return {}

    def _new_optimiser(self) -> Optimiser:
        lr = getattr(self, "lr_", 0.01) if self.lr == "auto" else self.lr
        if not callable(self.optimiser):
            return optimisers.create(self.optimiser, lr=lr)
        optimiser = self.optimiser(lr=lr)
        if not isinstance(optimiser, Optimiser):
            raise TypeError(f"optimiser: expected it to return an Optimiser, got {optimiser!r}")
        return optimiser

    def _fit(
        self,
        examples: SequenceDataset,
        outputs: int,
        valid: SequenceDataset | None = None,
        strata: Any = None,
        epochs: int | None = None,
    ) -> Self:
        """Train on examples.

        valid    what is held out; None: ``early_stopping`` takes it from the examples
        strata   (N,) classes, of which each is to have its share in what is held out
        epochs   how many; nothing is held out then. None: ``max_epochs``
        """
        most = expect_int("max_epochs", self.max_epochs)
        self._begin(examples, outputs, not (self.warm_start and hasattr(self, "network_")))
        self._optimiser = None
        if self.early_stopping and valid is None and epochs is None:
            examples, valid = self._held_out(examples, strata)
        self.loss_curve_: list[float] = []
        self.validation_curve_: list[float] = []
        patience, best = expect_int("patience", self.patience), self.network_.arrays()
        if self.lr == "auto":
            self.lr_ = self._find_lr(examples)
        optimiser = self._new_optimiser()
        lr, total = optimiser.lr, epochs or most
        with self._bar(total) as bar:
            for epoch in bar:
                optimiser.lr = lr * self._schedule(epoch / total)
                self.loss_curve_.append(self._train(examples, optimiser, bar))
                bar.set_postfix(loss=f"{self.loss_curve_[-1]:.4g}", refresh=False)
                if valid is None:
                    continue
                self.validation_curve_.append(self._evaluate(valid))
                bar.set_postfix(valid=f"{self.validation_curve_[-1]:.4g}", refresh=False)
                since_best = epochs_since_best(self.validation_curve_)
                if not since_best:
                    best = self.network_.arrays()
                elif since_best >= patience:
                    break
        if valid is not None:
            self.network_.load_arrays(best)
        return self

    def _partial_fit(self, examples: SequenceDataset, outputs: int) -> Self:
        """Train on examples once, with the same optimiser as the last time."""
        self._begin(examples, outputs, not hasattr(self, "network_"))
        if self._optimiser is None:
            self._optimiser = self._new_optimiser()
        self.loss_curve_ = [
            *getattr(self, "loss_curve_", []), self._train(examples, self._optimiser)
        ]  # fmt: skip
        return self

    def _held_out(
        self, examples: SequenceDataset, strata: Any
    ) -> tuple[SequenceDataset, SequenceDataset]:
        """Some examples for training, the others for validation.

        Classes are held out in proportion, where what is held out has room for all of them; the one
        member of a class is trained on.
        """
        share = expect_float("validation_fraction", self.validation_fraction, 0, 1, low_open=True)
        seed, rows = int(self._rng.integers(2**31)), np.arange(len(examples))
        alone: Any = rows[:0]
        if strata is not None:
            _, at, counts = np.unique(strata, return_inverse=True, return_counts=True)
            held, several = math.ceil(share * len(rows)), counts > 1
            alone, rows = rows[~several[at]], rows[several[at]]
            room = several.sum() <= min(held, len(rows) - held)
            strata = strata[rows] if room else None
            share = held if len(alone) else share
        try:
            train, valid = train_test_split(
                rows, test_size=share, stratify=strata, random_state=seed
            )
        except ValueError as error:
            raise ValueError(
                f"early_stopping: expected enough sequences to hold out {share:g} of them, got "
                f"{len(examples)}; early_stopping=False trains on all of them ({error})"
            ) from error
        return examples.picked(np.concatenate([train, alone])), examples.picked(valid)

    def _find_lr(self, examples: SequenceDataset) -> float:
        """A learning rate by a range test, after which the network is as it was."""
        before, optimiser, rng = self.network_.arrays(), self._new_optimiser(), self._rng
        size = self._batch_size(len(examples))

        def batches() -> Iterator[SequenceDataset]:
            while True:
                yield from examples.batches(size, rng.permutation(len(examples)))

        def step(batch: SequenceDataset, lr: float) -> float:
            optimiser.lr = lr
            loss, norm = self._backward(batch)
            if math.isfinite(loss) and math.isfinite(norm):
                optimiser.update(self.network_.params, self.network_.grads)
                return loss
            return math.inf

        with self.network_.lock:
            lr, _ = range_test(step, batches())
            self.network_.forget()
        self.network_.load_arrays(before)
        return lr

    def _schedule(self, progress: float) -> float:
        """The share of the learning rate after a share of all epochs."""
        return 1.0

    def _bar(self, epochs: int) -> Any:
        name = type(self).__name__
        return progress_bar(range(epochs), desc=name, unit="epoch", shown=bool(self.verbose))

    def _train(self, examples: SequenceDataset, optimiser: Optimiser, bar: Any = None) -> float:
        """One epoch; its mean loss.

        bar  its clock starts after the first batch of all, which takes compilation, too
        """
        size, network = self._batch_size(len(examples)), self.network_
        total, started = 0.0, False
        with network.lock:
            for batch in examples.batches(size, self._rng.permutation(len(examples))):
                loss, norm = self._backward(batch)
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    raise TrainingDiverged(
                        f"loss {loss}, gradient norm {norm}, lr {optimiser.lr:g}; a lower lr or "
                        "clip helps, and so do X and y of about size 1"
                    )
                optimiser.update(network.params, network.grads)
                total += loss * batch.count
                if bar is not None and not (self.loss_curve_ or started):
                    bar.unpause()
                    started = True
            network.forget()
        return total / examples.count

    def _backward(self, batch: SequenceDataset) -> tuple[float, float]:
        """Fill the gradients of the network, clipped; the loss and their norm before."""
        scores = self.network_.forward(*pad(batch.xs), train_flg=True)
        loss, dscores = self._loss(scores, *batch.targets())
        self.network_.backward(dscores)
        return loss, float(self._clipped(self.network_.grads))

    def _batch_size(self, count: int) -> int:
        """The number of sequences in a batch, of so many."""
        if self.batch_size == "auto":
            return min(32, max(8, count // 16))
        return expect_int("batch_size", self.batch_size)

    def _clipped(self, grads: list[Array]) -> Any:
        """Clip the gradients, where that is wanted; their norm before."""
        return global_norm(grads) if self.clip is None else clip_grads(grads, self.clip)

    def _evaluate(self, examples: SequenceDataset) -> float:
        """The mean loss, without dropout."""
        total = 0.0
        with self.network_.lock:
            for batch in examples.batches(
                self._batch_size(len(examples)), np.arange(len(examples))
            ):
                scores = self.network_.forward(*pad(batch.xs))
                total += self._loss(scores, *batch.targets())[0] * batch.count
            self.network_.forget()
        return total / examples.count

    # ---- use

    def _scores(self, xs: Sequences) -> Array:
        """The outputs of the network: (N, M), or (steps, M) if it has some at every step, those of
        one sequence behind those of the other."""
        size, network, found = self._batch_size(len(xs)), self.network_, []
        with network.lock:
            for start in range(0, len(xs), size):
                batch, lengths = pad(xs[start : start + size])
                scores = to_host(network.forward(batch, lengths))
                if network.per_step and lengths is not None:
                    found.append(scores[mask_of(lengths)])
                else:
                    found.append(scores.reshape(-1, scores.shape[2]))
            network.forget()
        return np.concatenate(found)

    def plot_learning_curve(self, ax: Any = None) -> Any:
        """Draw the losses of ``fit`` over its epochs, with matplotlib (extra ``plot``).

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; by default in a new figure of ``pyplot``.

        Returns
        -------
        ax : matplotlib Axes
            ``ax.figure.savefig(path)`` writes the picture.
        """
        check_is_fitted(self)
        if ax is None:
            with optional_import("matplotlib", "plot_learning_curve"):
                import matplotlib.pyplot as plt
            _, ax = plt.subplots(layout="constrained")
        curves = (
            ("training", self.loss_curve_),
            ("held out", getattr(self, "validation_curve_", [])),
        )
        for label, curve in curves:
            if curve:
                ax.plot(range(1, len(curve) + 1), curve, label=label)
        if curves[1][1]:
            best = int(np.argmin(curves[1][1]))
            ax.axvline(best + 1, color="grey", linewidth=1, linestyle=":", label="kept")
        ax.set_xlabel("epoch")
        ax.set_ylabel("loss")
        ax.legend()
        return ax

    # ---- pickle

    def __getstate__(self) -> dict[str, Any]:
        """Attributes as they are; the network and the optimiser as numbers and safetensors."""
        from safetensors.numpy import save

        state = dict(super().__getstate__())
        network = state.pop("network_", None)
        if network is None:
            return state
        numbers, memory = {}, {}
        optimiser = state.pop("_optimiser")
        if optimiser is not None:
            numbers, memory = optimiser.state()
        memory = {name: np.ascontiguousarray(array) for name, array in memory.items()}
        state["_saved"] = {
            "config": network.config,
            "random": state.pop("_rng").bit_generator.state,
            "parameters": save(network.arrays()),
            "optimiser": None if optimiser is None else (numbers, save(memory)),
        }
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        from safetensors import SafetensorError

        saved = state.pop("_saved", None)
        super().__setstate__(state)
        if saved is None:
            return
        try:
            self._take_up(saved)
        except (
            KeyError, IndexError, AttributeError, TypeError, ValueError, OverflowError,
            SafetensorError,
        ) as error:  # fmt: skip
            raise ValueError(
                f"{type(self).__name__}: expected the pickle of a fitted one, got one that is "
                f"damaged ({error!r})"
            ) from error

    def _take_up(self, saved: dict[str, Any]) -> None:
        """The network and the optimiser, as ``__getstate__`` made numbers of them."""
        from safetensors.numpy import load

        arrays = load(saved["parameters"])
        expect_sizes(saved["config"], arrays)
        self._rng = np.random.default_rng(0)
        self.network_ = Network(**saved["config"], rng=self._rng)
        self.network_.load_arrays(arrays)
        self._rng.bit_generator.state = saved["random"]
        self._optimiser = None
        if saved["optimiser"] is not None:
            numbers, memory = saved["optimiser"]
            self._optimiser = self._new_optimiser()
            self._optimiser.restore(numbers, load(memory))
