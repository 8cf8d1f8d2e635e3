"""The profile as one self-contained HTML file: tables, and plots as embedded SVG."""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from scalesim.errors import ConfigError
from scalesim.profile.statistics import Profile


def page(profile: Profile) -> str:
    """The page. Raises ``ConfigError`` where matplotlib is not installed."""
    from jinja2 import Environment, PackageLoader

    loader = PackageLoader("scalesim", "profile")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True)
    environment.globals["show"] = _show
    prefill = sum(row["prefill"] * row["pairs"] for row in profile.breaks)
    gain = sum(row["gain"] * row["pairs"] for row in profile.breaks)
    summary = [
        {"of": name, **dict.fromkeys(("mean", "p10", "p50", "p90", "p99")), **values}
        for name, values in (
            ("ticks between activations", profile.gaps),
            ("agents active in between", profile.reuse),
            ("calls of an activation", profile.burst),
            ("tokens of a prompt", profile.prompts),
        )
    ]
    return environment.get_template("report.html").render(
        profile=profile,
        summary=summary,
        plots=_plots(profile),
        gain_share=gain / prefill if prefill else 0.0,
        has_prompts=bool(profile.prompts.get("mean")),
    )


def _show(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    number = float(value)
    if number == int(number) and abs(number) < 1e6:
        return str(int(number))
    return f"{number:.3g}" if abs(number) < 100 else f"{number:,.0f}"


def check_plots() -> None:
    """Raise ``ConfigError`` if matplotlib is not installed; called before the log is read."""
    if find_spec("matplotlib") is None:
        raise ConfigError(
            "the page has plots, and matplotlib is not installed; "
            "pip install 'scalesim-runtime[report]', or give --out a name that ends in .json"
        )


def _plots(profile: Profile) -> dict[str, str]:
    check_plots()
    import matplotlib

    matplotlib.use("svg")
    return {
        "activity": _svg(lambda axes: _activity(axes, profile.series), 2),
        "gaps": _svg(lambda axes: _distributions(axes, profile.series), 2),
        "misses": _svg(lambda axes: _misses(axes[0], profile.misses), 1),
    }


def _svg(draw: Callable[[Any], None], num: int) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "scalesim", "font.size": 9}):
        figure = Figure(figsize=(8.6, 2.8), layout="constrained")
        axes = figure.subplots(1, num, squeeze=False)[0]
        draw(axes)
        for axis in axes:
            axis.spines[["top", "right"]].set_visible(False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _activity(axes: Any, series: dict[str, list[float]]) -> None:
    axes[0].step(series["window"], series["activations"], where="post", color="#2f6db5")
    axes[0].set(xlabel="tick", ylabel="activations in a 40th of the log", ylim=0)
    axes[1].step(series["window"], series["working set"], where="post", color="#b5612f")
    axes[1].set(xlabel="tick", ylabel="working set, share of agents", ylim=(0, 1.02))


def _distributions(axes: Any, series: dict[str, list[float]]) -> None:
    for axis, name, label in (
        (axes[0], "gap", "ticks between activations"),
        (axes[1], "reuse", "other agents in between"),
    ):
        if series[name]:
            axis.plot(series[name], series["share"], color="#2f6db5")
        axis.set(xlabel=label, ylabel="share at most", ylim=(0, 1.02), xlim=0)


def _misses(axis: Any, rows: list[dict[str, float]]) -> None:
    shares = [100 * row["share"] for row in rows]
    axis.plot(shares, [row["lru"] for row in rows], "o-", label="LRU", color="#b5612f")
    axis.plot(shares, [row["belady"] for row in rows], "o-", label="Belady", color="#2f6db5")
    axis.set(xlabel="agents that fit, %", ylabel="miss ratio", ylim=(0, 1.02), xlim=(0, 101))
    axis.legend(frameon=False)
