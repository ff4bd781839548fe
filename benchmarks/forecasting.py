"""Forecasts with the defaults of ``RNNForecaster``, beside the seasonal naive one and Holt-Winters.

    pip install -e ".[forecasting]"
    python -m benchmarks.forecasting

Six series of statsmodels, of each the last season held out, or 24 steps where it has no season. The
estimator is told how many steps are wanted, and nothing else: season, differences, logarithms, lags
and the number of epochs are found by trials on the steps before. MASE is the mean absolute error
over that of the naive forecasts of the steps before (of one season, or of one step where there is
none), here the mean of several seeds, with the least and the largest. Holt-Winters has a damped
trend or not, and an additive or a multiplicative season, as AIC says on the steps before;
statsmodels fits it.

With ``--before K`` the K windows before the last are forecast as well, each from what comes before
it: one window is little to judge by.
"""

import time
import warnings
from typing import Annotated, Any

import typer

# monthly passengers of airlines in thousands, 1949 to 1960: Box and Jenkins (1970), Series G
AIRLINE = """
    112 118 132 129 121 135 148 148 136 119 104 118
    115 126 141 135 125 149 170 170 158 133 114 140
    145 150 178 163 172 178 199 199 184 162 146 166
    171 180 193 181 183 218 230 242 209 191 172 194
    196 196 236 235 229 243 264 272 237 211 180 201
    204 188 235 227 234 264 302 293 259 229 203 229
    242 233 267 269 270 315 364 347 312 274 237 278
    284 277 317 313 318 374 413 405 355 306 271 306
    315 301 356 348 355 422 465 467 404 347 305 336
    340 318 362 348 363 435 491 505 404 359 310 337
    360 342 406 396 420 472 548 559 463 407 362 405
    417 391 419 461 472 535 622 606 508 461 390 432
"""


def series() -> dict[str, tuple[Any, int]]:
    """Series (T,) and their seasons, 1 for none."""
    import numpy as np
    from statsmodels import datasets

    elnino = datasets.elnino.load_pandas().data.set_index("YEAR")
    return {
        "airline": (np.array(AIRLINE.split(), float), 12),
        "sunspots": (datasets.sunspots.load_pandas().data["SUNACTIVITY"].to_numpy(float), 11),
        "co2": (datasets.co2.load_pandas().data["co2"].interpolate().to_numpy(float), 52),
        "nile": (datasets.nile.load_pandas().data["volume"].to_numpy(float), 1),
        "elnino": (elnino.to_numpy(float).ravel(), 12),
        "gdp": (datasets.macrodata.load_pandas().data["realgdp"].to_numpy(float), 1),
    }


def seasonal_naive(past: Any, season: int, steps: int) -> Any:
    """The last season, again and again."""
    import numpy as np

    return past[len(past) - season + np.arange(steps) % season]


def holt_winters(past: Any, season: int, steps: int) -> Any:
    """The forecast of the exponential smoothing with the least AIC."""
    from statsmodels.tsa.holtwinters import ExponentialSmoothing

    kinds: list[str | None] = [None]
    if season > 1:
        kinds = ["add", "mul"] if past.min() > 0 else ["add"]
    fits = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the optimiser
        for kind in kinds:
            for damped in (False, True):
                model = ExponentialSmoothing(
                    past, trend="add", damped_trend=damped, seasonal=kind,
                    seasonal_periods=season if kind else None,
                )  # fmt: skip
                fits.append(model.fit())
    return min(fits, key=lambda fit: fit.aic).forecast(steps)


def main(
    seeds: Annotated[int, typer.Option(help="Networks of each series.", min=1)] = 3,
    before: Annotated[int, typer.Option(help="Windows before the last, too.", min=0)] = 0,
    only: Annotated[list[str] | None, typer.Option(help="Some of the series.")] = None,
) -> None:
    """Print MASE of forecasts of six series."""
    import numpy as np

    from numba_rnn.sklearn import RNNForecaster

    def mase(came: Any, said: Any, past: Any, season: int) -> float:
        return float(np.abs(came - said).mean() / np.abs(past[season:] - past[:-season]).mean())

    names = ("series", "steps", "held", "naive", "H-W", "ours", "least", "most", "s/fit", "chosen")
    print("  {:10}{:>6}{:>6}{:>8}{:>8}{:>8}{:>8}{:>8}{:>8}  {}".format(*names))
    below = {"seasonal naive": 0, "Holt-Winters": 0}
    total = 0
    for name, (values, season) in series().items():
        steps = season if season > 1 else 24
        for window in range(before + 1):
            end = len(values) - steps * window
            past, came = values[: end - steps], values[end - steps : end]
            if len(past) < 2 * steps or (only and name not in only):
                continue
            naive = mase(came, seasonal_naive(past, season, steps), past, season)
            smooth = mase(came, holt_winters(past, season, steps), past, season)
            found, started = [], time.perf_counter()
            for seed in range(seeds):
                model = RNNForecaster(horizon=steps, random_state=seed).fit(past)
                found.append(mase(came, model.predict(past), past, season))
            taken, ours = (time.perf_counter() - started) / seeds, float(np.mean(found))
            chosen = (
                f"{model.differencing_ or 'no'} differences, season {model.season_}, "
                f"lags {model.lags_}{', log' * model.log_}, {len(model.loss_curve_)} epochs"
            )
            label = name + (f" -{window}" if window else "")
            print(
                f"  {label:10}{len(values):>6}{steps:>6}{naive:>8.2f}{smooth:>8.2f}{ours:>8.2f}"
                f"{min(found):>8.2f}{max(found):>8.2f}{taken:>8.1f}  {chosen}",
                flush=True,
            )
            below["seasonal naive"] += ours < naive
            below["Holt-Winters"] += ours < smooth
            total += 1
    print("  " + ", ".join(f"below {name} {k} of {total}" for name, k in below.items()))


if __name__ == "__main__":
    typer.run(main)
