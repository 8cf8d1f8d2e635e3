"""The profile as one self-contained HTML file: tables, and plots as embedded SVG."""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from scalesim.errors import ConfigError
from scalesim.profile.statistics import Profile

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Profile of {{ profile.source }}</title>
<style>
 body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
        color: #1b2330 }
 h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
 table { border-collapse: collapse; margin: .6rem 0 }
 td, th { padding: .2rem .8rem .2rem 0; text-align: right; border-bottom: 1px solid #e3e7ee }
 td:first-child, th:first-child { text-align: left }
 figure { margin: .6rem 0 } figure svg { max-width: 100%; height: auto } p.note { color: #586274 }
 .wide { overflow-x: auto }
</style>
<h1>Profile of {{ profile.source }}</h1>
<p class="note">Read as {{ profile.form }}. {{ profile.totals["calls"] | int }} calls of
{{ profile.totals["agents"] | int }} agents in {{ profile.totals["ticks"] | int }} ticks.</p>
{% macro table(rows, columns) %}<div class="wide"><table><tr>{% for name in columns %}
<th>{{ name.replace("_", " ") }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for name in columns %}<td>{{ show(row[name]) }}</td>{% endfor %}</tr>
{% endfor %}</table></div>{% endmacro %}
<h2>Who is active</h2>
<p>In a tick, {{ "%.1f" | format(100 * profile.totals["active share of a tick"]) }} % of the agents
call; the busiest tenth of them make
{{ "%.0f" | format(100 * profile.totals["share of the busiest tenth"]) }} % of all activations.</p>
<figure>{{ plots.activity | safe }}</figure>
{{ table(summary, ["of", "mean", "p10", "p50", "p90", "p99"]) }}
<h2>When they come back</h2>
<p>Left: ticks between an agent's activations. Right: how many other agents were active in
between.</p>
<figure>{{ plots.gaps | safe }}</figure>
<h2>What a cache of agents would miss</h2>
<p>Of the activations that could hit. The distance between the curves is what knowing the next use
is worth.</p>
<figure>{{ plots.misses | safe }}</figure>
{{ table(profile.misses, ["share", "agents", "lru", "belady"]) }}
<h2>How predictable they are</h2>
<p>Said: the share of activations that something was said of; then what came of it. Kept: of
the misses of last use, the share that the prediction's order leaves in small caches of names; above
0.97 the learned source keeps silent.</p>
{{ table(profile.predicted, ["source", "said", "on_time", "early", "late", "never", "kept"]) }}
{% if profile.breaks %}<h2>Where prompts break the cache</h2>
<p>By template, over an agent's successive prompts, in tokens a call: where they part, what is
computed again behind it, and how much of that is the same text again, which would be found if what
changes came last. Shared: what prompts of different agents have in common.</p>
{{ table(profile.breaks[:20],
         ["template", "pairs", "prompt_len", "part_at", "prefill", "gain", "shared"]) }}
<p><b>{{ "%.0f" | format(100 * gain_share) }} %</b> of all prefill behind the first difference
could be had from the cache by moving what changes to the end.</p>{% elif not has_prompts %}
<p class="note">This log has no prompts, so nothing can be said of where they break the cache.</p>
{% else %}<p class="note">No agent called twice with one template.</p>{% endif %}
</html>
"""


def page(profile: Profile) -> str:
    """The page. Raises ``ConfigError`` where matplotlib is not installed."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True)
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
    return environment.from_string(_PAGE).render(
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
