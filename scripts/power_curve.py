"""Draw docs/power.png, how often a difference is found, on the simulated noise of tests/helpers/noise.py.

uv run python -m scripts.power_curve
"""

from __future__ import annotations

from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd

from kit.bench.measure import Plan
from kit.bench.stats import Outcome, compare, judge
from tests.helpers import noise

SERIES = 400
DIFFERENCES = (0.0, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.07, 0.1)
KINDS = {
    "quiet": "a quiet machine",
    "all at once": "drift, spikes and two modes at once",
    "places in memory": "the place in memory costs 2.8 % more or less",
    "own autocorrelation 0.8": "2 % noise of each one's own, four fifths stay",
}
SAID = {Outcome.FASTER: "FASTER", Outcome.SAME: "SAME"}


def shares(kind: str, rounds: int) -> pd.DataFrame:
    """Return the share of each verdict at each difference."""
    lines = []
    for difference in DIFFERENCES:
        found = []
        for seed in range(SERIES):
            logs = noise.series(kind, seed, rounds)
            logs[:, 1] += np.log1p(-difference)
            found += judge([compare(np.exp(logs[:, 0]), np.exp(logs[:, 1]))])
        lines += [
            {
                "kind": KINDS[kind],
                "rounds": rounds,
                "difference": difference,
                "verdict": word,
                "share": found.count(said) / SERIES,
            }
            for said, word in SAID.items()
        ]
    return pd.DataFrame(lines)


def main() -> None:
    """Simulate and draw."""
    table = pd.concat([shares(kind, rounds) for kind in KINDS for rounds in (30, Plan().rounds, 300)])
    base = alt.Chart(table).mark_line(point=True, interpolate="monotone")
    chart = base.encode(
        x=alt.X("difference:Q", title="true difference", axis=alt.Axis(format="%", values=[0, 0.02, 0.05, 0.1])),
        y=alt.Y(
            "share:Q",
            title="said in 400 runs: FASTER ——, SAME - - -",
            axis=alt.Axis(format="%"),
            scale=alt.Scale(domain=[0, 1]),
        ),
        color=alt.Color("rounds:O", title="rounds", scale=alt.Scale(range=["#E69F00", "#0072B2", "#009E73"])),
        strokeDash=alt.StrokeDash("verdict:N", scale=alt.Scale(domain=["FASTER", "SAME"]), legend=None),
    ).properties(width=300, height=170)
    facets = chart.facet(facet=alt.Facet("kind:N", title=None, sort=list(KINDS.values())), columns=2)
    facets.save(Path(__file__).parents[1] / "docs" / "power.png", scale_factor=2)


main()
