"""Charts say their values and leave gaps out."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from pipeline.report_page.charts import Line, curves, distribution


def parsed(figure: str) -> ElementTree.Element:
    return ElementTree.fromstring(figure)


def test_curves_have_a_point_with_its_value_for_each_epoch():
    chart = parsed(curves("loss", [[0, 1, 2]], [Line("run <1>", [1.0, None, math.nan], "#111")]))
    assert [title.text for title in chart.iter("title")] == ["run <1>, epoch 0: 1"]
    chart = parsed(curves("loss", [[0, 1, 2]], [Line("a", [1.0, 0.5, 0.25], "#111")]))
    heights = [float(circle.get("cy", 0)) for circle in chart.iter("circle")]
    assert heights == sorted(heights)  # falling: further down
    assert heights[2] - heights[1] == pytest.approx((heights[1] - heights[0]) / 2, abs=0.2)
    assert curves("loss", [[0]], [Line("a", [None], "#111")]) == ""


def test_a_long_training_has_one_line_and_few_points():
    chart = parsed(curves("loss", [range(5000)], [Line("a", [1 / (1 + n) for n in range(5000)], "#111")]))
    assert len(list(chart.iter("circle"))) <= 160
    assert len(next(chart.iter("path")).get("d", "").split()) == 5000


def test_every_score_is_a_dot_at_its_place_worst_structure_first():
    scores = {"good": [("a", 1.0), ("b", 0.9)], "bad": [("a", 0.0), ("b", 0.2)], "absent": []}
    chart = parsed(distribution(scores, {"good": "#00ff00"}))
    dots = {next(dot.iter("title")).text: dot for dot in chart.iter("circle")}
    assert set(dots) == {"good, a: 1.0000", "good, b: 0.9000", "bad, a: 0.0000", "bad, b: 0.2000"}
    assert float(dots["bad, a: 0.0000"].get("cy", 0)) < float(dots["good, a: 1.0000"].get("cy", 0))
    assert float(dots["bad, a: 0.0000"].get("cx", 0)) == 190
    assert float(dots["good, a: 1.0000"].get("cx", 0)) == 840
    assert distribution({"absent": []}, {}) == ""


def test_of_very_many_cases_only_quartiles_are_drawn():
    chart = parsed(distribution({"liver": [(str(n), n / 5000) for n in range(5000)]}, {}))
    assert not list(chart.iter("circle"))
    assert any((title.text or "").startswith("liver: median 0.4999 of 5000") for title in chart.iter("title"))


def test_axes_have_round_numbers_and_the_best_epoch_a_ring():
    chart = parsed(curves("mIoU", [[0, 1, 2, 3]], [Line("a", [0.213, 0.9, 1.16, 1.1], "#111", best=2)]))
    numbers = [text.text for text in chart.iter("text")]
    assert numbers == ["0.2", "0.4", "0.6", "0.8", "1", "1.2", "0", "1", "2", "3", "epoch"]
    best = list(chart.iter("circle"))[2]
    ring = list(chart.iter("path"))[1].get("d", "")
    x, y = (float(number) for number in ring[1:].split(" ")[0].split(","))
    assert (x + 6, y) == (float(best.get("cx", 0)), float(best.get("cy", 0)))


@pytest.mark.parametrize(
    "values", [[1e-7, 1.1e-7], [5.0, 5.0], [0.8, 0.8000000000000002], [-3.0, 2.0], [0.0, 0.0], [1e9, 3e9]]
)
def test_every_point_lies_within_the_axes(values):
    chart = parsed(curves("a", [[0, 1]], [Line("a", values, "#111")]))
    lines = [float(line.get("y1", 0)) for line in chart.iter("line")]
    assert all(min(lines) <= float(point.get("cy", 0)) <= max(lines) for point in chart.iter("circle"))


def test_equal_scores_of_few_structures_are_dots_of_their_own():
    chart = parsed(distribution({"liver": [(str(n), 0.5) for n in range(5)]}, {}))
    assert len({dot.get("cy") for dot in chart.iter("circle")}) == 5
