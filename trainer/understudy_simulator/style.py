"""How plots look, wherever the project draws any: matplotlib's options, quiet and without a frame."""

from __future__ import annotations

from typing import Any

STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e8ec",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 110,
}
