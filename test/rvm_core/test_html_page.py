"""HTML of reports: texts are escaped, and what is drawn is where it should be."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from rvm_core.html_page import (
    curve_plot,
    details,
    facts,
    figure,
    figures,
    heading,
    link,
    page,
    paragraph,
    table,
    tiles,
)

NASTY = "<b>\"a\" & 'b'</b>"
ESCAPED = "&lt;b&gt;&quot;a&quot; &amp; &#x27;b&#x27;&lt;/b&gt;"


class Balance(HTMLParser):
    """Notes tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_a_page_is_whole_and_escaped() -> None:
    body = [
        heading(NASTY),
        paragraph(NASTY, warning=True),
        table([NASTY, "n"], [[NASTY, "1"], ["x", "2"]], strong=[0], caption=NASTY),
        facts({NASTY: NASTY}),
        figures([figure("a folder/b.png", NASTY, width=3, height=4)]),
    ]
    html = page(NASTY, body, lead=NASTY)
    assert NASTY not in html and html.count(ESCAPED) == 12
    assert "a%20folder/b.png" in html and 'width="3" height="4"' in html and html.count('class="strong"') == 1
    balance = Balance()
    balance.feed(html)
    assert not balance.open and not balance.wrong
    assert "http" not in html.replace("http-equiv", "")


LINES = {"one": [(16.0, 1.0), (48.0, 0.5), (80.0, 0.25)], "<two>": [(16.0, 1.0), (80.0, math.nan)]}


def test_a_plot_has_its_points_in_their_places() -> None:
    svg = curve_plot(LINES, title="t", x_title="x", y_title="y")
    root = ElementTree.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    lines = [line.get("points", "").split() for line in root.iter(f"{space}polyline")]
    assert [len(line) for line in lines] == [3, 1]
    at = [tuple(map(float, point.split(","))) for point in lines[0]]
    assert at[0][0] < at[1][0] < at[2][0] and at[0][1] < at[1][1] < at[2][1]
    # Equal steps in x, and half of the way down for half of the value, as the axis starts at 0.
    assert at[1][0] - at[0][0] == pytest.approx(at[2][0] - at[1][0], abs=0.2)
    assert (at[1][1] - at[0][1]) == pytest.approx(2 * (at[2][1] - at[1][1]), abs=0.2)
    texts = [text.text for text in root.iter(f"{space}text")]
    assert {"t", "x", "y", "one", "<two>"} <= set(texts)


@pytest.mark.parametrize("points", [[(1.0, 2.0)], [(1.0, 5.0), (2.0, 5.0)], [(0.0, -1.0), (1.0, 1.0)]])
def test_a_plot_of_little(points: list[tuple[float, float]]) -> None:
    assert ElementTree.fromstring(curve_plot({"a": points}, title="t", x_title="x", y_title="y")) is not None


def test_a_plot_of_nothing_says_so() -> None:
    assert "nothing to show" in curve_plot({"a": [(0.0, math.inf)]}, title="t", x_title="x", y_title="y")


def test_the_names_of_many_lines_are_beside_the_plot() -> None:
    few, many = (
        ElementTree.fromstring(
            curve_plot(
                {f"line {i}": [(0.0, 0.0), (1.0, float(i))] for i in range(count)}, title="t", x_title="x", y_title="y"
            )
        )[0]
        for count in (2, 25)
    )
    assert float(many.attrib["width"]) > float(few.attrib["width"])
    names = [text for text in many if (text.text or "").startswith("line ")]
    assert len(names) == 25
    # To the right of all points, and all of them within the picture.
    furthest = max(float(circle.attrib["cx"]) for circle in many if circle.tag.endswith("circle"))
    assert min(float(name.attrib["x"]) for name in names) > furthest
    assert max(float(name.attrib["y"]) for name in names) < float(many.attrib["height"])


def test_other_parts_are_escaped_too() -> None:
    parts = [
        heading(NASTY, level=3),
        paragraph(NASTY, note=True),
        tiles({NASTY: NASTY}),
        details(NASTY, paragraph("inside")),
        link('a "folder"/b.mp4', NASTY),
        figure("b.png", "b", dark='c "d".png'),
        table(["name", "text"], [["a", NASTY]], text=[1]),
    ]
    html = page("parts", parts)
    assert NASTY not in html and html.count(ESCAPED) == 7
    assert "<details><summary>" in html and "<h3>" in html and '<td class="text">' in html
    assert 'href="a%20%22folder%22/b.mp4"' in html
    assert 'srcset="c%20%22d%22.png"' in html and html.index("srcset") < html.index('src="b.png"')


def test_a_page_forbids_scripts_and_what_is_elsewhere() -> None:
    html = page("title", [])
    assert "default-src 'none'" in html and "script-src" not in html and "http:" not in html and "https:" not in html
