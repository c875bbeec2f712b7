"""Foreign text is text in the page, and its tables sort."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

from pipeline.report_page.markup import data, facts, legend, number, section, side_by_side, table, text, words
from tests.support.page_script import run_script

EVIL = '</script><img src=x onerror="alert(1)">\x1b[2J&amp;'


class Elements(HTMLParser):
    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words.append(data)


def test_names_are_shown_and_make_no_elements():
    page = Elements(section(EVIL, table([EVIL], [[words(EVIL)]]), facts([(EVIL, EVIL), ("empty", None)])))
    assert "img" not in page.tags
    assert not any(name.startswith("on") for name, _ in page.attributes)
    shown = EVIL.replace("\x1b", "\N{REPLACEMENT CHARACTER}")
    assert page.words.count(shown) == 5
    assert text(EVIL).count("<") == 0


def test_data_cannot_end_its_element():
    page = Elements(data("a", {"name": EVIL, "more": "<!--"}))
    assert page.tags == ["script"]


def test_undefined_numbers_are_dashes():
    assert number(None).shown == number(math.nan).shown == "–"
    assert number(0.5, 2) == ("0.50", 0.5)


def test_a_section_without_content_is_left_out():
    assert section("a", "") == ""


def test_the_script_sorts_numbers_as_numbers_and_puts_undefined_ones_last():
    """Twice: up, then down."""
    orders = run_script(
        """
        const cell = (order, kind) => ({ className: kind, getAttribute: () => order });
        const attributes = {};
        const heading = {
          getAttribute: (name) => attributes[name] ?? null,
          setAttribute: (name, value) => { attributes[name] = value; },
          removeAttribute: (name) => { delete attributes[name]; },
        };
        const rows = values.map((value) => ({ cells: [cell(value, "number")] }));
        const move = (row) => { body.rows = body.rows.filter((one) => one !== row).concat([row]); };
        const body = { rows, appendChild: move };
        const table = { tHead: { rows: [{ cells: [heading] }] }, tBodies: [body] };
        const found = [];
        for (let n = 0; n < 2; n++) {
          const before = attributes["aria-sort"];
          page.sortTable(table, 0);
          found.push(body.rows.map((row) => row.cells[0].getAttribute()));
        }
        return found;
        """,
        values=["10", "9", "", "-1", "0.5"],
    )
    assert orders[0] == ["-1", "0.5", "9", "10", ""]


def test_facts_are_in_words_and_those_of_several_runs_beside_each_other():
    assert "<dd>yes</dd>" in facts([("augmentation", True)])
    content = side_by_side({"a<1>": [("seed", 42), ("lr", 0.1)], "b": [("seed", 42), ("threads", 2)]})
    assert '<td colspan="2">42</td>' in content
    assert "<td>0.1</td><td>–</td>" in content
    assert "<td>–</td><td>2</td>" in content
    assert "a&lt;1&gt;" in content
    assert side_by_side({"a": [("seed", 42)]}) == "<h3>a</h3><dl><dt>seed</dt><dd>42</dd></dl>"


def test_very_many_runs_are_lines_of_a_table_below_what_they_share():
    content = side_by_side({f"run_{n}": [("seed", 42), ("lr", n)] for n in range(9)})
    assert content.startswith("<dl><dt>seed</dt><dd>42</dd></dl>")
    assert re.findall("<tr><td.*?>(.*?)</td><td.*?>(.*?)</td></tr>", content) == [
        (f"run_{n}", str(n)) for n in range(9)
    ]


def test_a_legend_gives_each_name_its_colour():
    assert re.findall(r'fill="(.*?)"/></svg>(.*?)</li>', legend([("a<1>", "#ff0000")])) == [("#ff0000", "a&lt;1&gt;")]


def test_the_script_finds_the_points_under_the_mouse():
    """Of curves all of the nearest epoch; of dots the nearest one, and none far from all."""
    points = [{"x": 10, "y": 10}, {"x": 10, "y": 90}, {"x": 50, "y": 10}]
    body = "return places.map(([x, y, byEpoch]) => page.nearestPoints(points, x, y, byEpoch));"
    found = run_script(body, points=points, places=[[25, 50, True], [12, 88, False], [30, 50, False]])
    assert found == [points[:2], [points[1]], []]
