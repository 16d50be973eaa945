"""Results as pictures, SVG and PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_SHOWN = (
    "nftables NAT",
    "plain forwarding",
    "dnat at TC",
    "bare redirect at TC",
    "dnat at XDP",
    "bare redirect at XDP",
)
_COLOURS = dict(zip(_SHOWN, ("#c0392b", "#7f8c8d", "#2471a3", "#a9cce3", "#1e8449", "#a9dfbf"), strict=True))


def draw(results: dict[str, Any], directory: Path) -> None:
    """Write every picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    # The same results give the same file.
    mpl.rcParams.update({"svg.hashsalt": "dnat", "font.size": 9, "svg.fonttype": "none"})
    from matplotlib import pyplot as plt

    for name, fill in (("router", _router), ("programs", _programs), ("leases", _leases)):
        figure = fill(plt, results)
        figure.savefig(directory / f"{name}.svg", metadata={"Date": None})
        figure.savefig(directory / f"{name}.png", dpi=120)
        plt.close(figure)


def _router(plt: Any, results: dict[str, Any]) -> Any:
    rows = [row for row in results["forwarding"] if row["octets"] == 60 and not row["new"]]
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
    for axis, (direction, title) in zip(axes, (("in", "inbound"), ("out", "outbound")), strict=True):
        for router in _SHOWN:
            own = [row for row in rows if row["router"] == router and row["direction"] == direction]
            flows = [row["flows"] for row in own]
            middle = [row["ns"]["median"] for row in own]
            axis.plot(flows, middle, marker="o", markersize=4, label=router, color=_COLOURS[router])
            low, high = [row["ns"]["low"] for row in own], [row["ns"]["high"] for row in own]
            axis.fill_between(flows, low, high, color=_COLOURS[router], alpha=0.25, linewidth=0)
        axis.set_xscale("log")
        axis.set_title(f"Router, {title}, 60 octets")
        axis.set_xlabel("flows")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("CPU ns per packet, sender included")
    axes[0].set_ylim(0, 1.05 * max(row["ns"]["high"] for row in rows))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=7)
    return figure


def _programs(plt: Any, results: dict[str, Any]) -> Any:
    rows = [row for row in results["programs"] if not row["program"].startswith("empty")]
    figure, axis = plt.subplots(figsize=(7, 3.8), layout="constrained")
    middle = [row["ns"]["median"] for row in rows]
    errors = [
        [row["ns"]["median"] - row["ns"]["low"] for row in rows],
        [row["ns"]["high"] - row["ns"]["median"] for row in rows],
    ]
    axis.barh([row["program"] for row in rows], middle, xerr=errors, color="#2471a3", ecolor="#555555")
    axis.set_xscale("symlog", linthresh=100)
    axis.invert_yaxis()
    axis.set_xlabel("ns beyond an empty program")
    axis.grid(axis="x", alpha=0.3)
    return figure


def _leases(plt: Any, results: dict[str, Any]) -> Any:
    rows = results["allocation"]
    figure, (rate, wait) = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
    colours = dict(zip((row["what"] for row in rows), ("#2471a3", "#7fb3d5", "#c0392b")[-len(rows) :], strict=True))
    for row in rows:
        name, value = row["what"], row["per_second"]
        error = [[value["median"] - value["low"]], [value["high"] - value["median"]]]
        rate.barh([name], [value["median"]], xerr=error, color=colours[name], ecolor="#555555")
        percentiles = {float(each): summary for each, summary in row["renewal_ms"].items()}
        middle = [summary["median"] for summary in percentiles.values()]
        wait.plot(list(percentiles), middle, marker="o", markersize=4, label=name, color=colours[name])
        low, high = ([summary[end] for summary in percentiles.values()] for end in ("low", "high"))
        wait.fill_between(list(percentiles), low, high, color=colours[name], alpha=0.25, linewidth=0)
    rate.set_xlabel("new leases per second, at most 1 % unanswered")
    rate.invert_yaxis()
    wait.set_xlabel("percentile of renewals at half of that rate")
    wait.set_ylabel("ms")
    wait.set_ylim(bottom=0)
    wait.grid(alpha=0.3)
    wait.legend(fontsize=8)
    return figure
