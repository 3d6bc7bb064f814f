"""Line plots."""

import re

from export.reporting.plot import Series, line_plot


def test_plot_of_zeros_and_of_one_step():
    zeros = line_plot([Series("exact", "#000", False, [0.0, 0.0])], "step", "error")
    assert "<circle" in zeros and "NaN" not in zeros and "inf" not in zeros
    gap = line_plot([Series("gap", "#000", True, [1e-3, 1e-3, 0.0, 1e-2])], "step", "error")
    path = re.search(r' d="([^"]*)"/>', gap[gap.index('class="line"') :])[1]
    assert (path.count("M"), path.count("L")) == (2, 1)
    assert "10<tspan" in line_plot([Series("<b>", "#000", False, [1.0])], "x", "y < z")
    assert "<b>" not in line_plot([Series("<b>", "#000", False, [1.0])], "x", "y < z")
