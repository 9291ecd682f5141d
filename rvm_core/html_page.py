"""HTML pages of reports: one look for all, no scripts, nothing fetched from anywhere.

Every function returns HTML and escapes the texts it is given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from urllib.parse import quote

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #d9dee5; --back: #f6f7f9; --paper: #ffffff;
  --warn: #fff4e0; --link: #1d5fb0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e2e6ea; --soft: #9aa4ad; --line: #363d44; --back: #1f2429;
  --paper: #15181b; --warn: #3a2c10; --link: #7fb2ef; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1200px; padding: 16px; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 24px; margin: 0 0 4px; overflow-wrap: anywhere; } h2 { font-size: 18px; margin: 32px 0 8px; }
h3 { font-size: 15px; margin: 20px 0 4px; } p { overflow-wrap: anywhere; } a { color: var(--link); }
p.lead, p.note { color: var(--soft); margin: 0 0 16px; } p.note { font-size: 13px; }
p.warning { background: var(--warn); border-left: 4px solid #d07a2a; padding: 8px 12px; }
table { border-collapse: collapse; margin: 8px 0; } caption { text-align: left; color: var(--soft); }
th, td { padding: 4px 12px; border-bottom: 1px solid var(--line); text-align: right;
  font-variant-numeric: tabular-nums; vertical-align: top; }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child { text-align: left; padding-left: 0; }
tr.strong td { font-weight: 600; background: var(--back); }
th.text, td.text { text-align: left; overflow-wrap: anywhere; min-width: 10em; }
.scroll { overflow-x: auto; } summary { cursor: pointer; padding: 4px 0; }
.figures { display: flex; flex-wrap: wrap; gap: 16px; } figure { margin: 0; max-width: 100%; }
figure img, figure svg { max-width: 100%; height: auto; border: 1px solid var(--line); display: block; }
figure svg { background: white; } figcaption { color: var(--soft); font-size: 13px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(112px, 1fr)); gap: 8px; margin: 16px 0; }
.tiles div { background: var(--back); border-radius: 8px; padding: 8px 12px; display: flex; flex-direction: column; }
.tiles dd { margin: 0; font-size: 21px; font-variant-numeric: tabular-nums; }
.tiles dt { color: var(--soft); font-size: 13px; }
"""
_POLICY = "default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'"
"""What a browser may load: pictures beside the page, and nothing that runs."""
_COLOURS = (
    "#2a6fbb", "#d07a2a", "#4f9a4f", "#9a5fb0", "#b03030", "#606060", "#1f9e9e", "#a89a00", "#d45f9f", "#7a4b21",
)  # fmt: skip
_WIDTH, _HEIGHT = 560, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 36, 44
_MANY = 5
"""So many lines have their names beside the plot, where they cover nothing."""
_LETTER = 6.6
"""Width of one, about, pixels."""


def page(title: str, body: Iterable[str], *, lead: str = "") -> str:
    """A whole page. `body`: HTML of its parts."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        + (f'<p class="lead">{escape(lead)}</p>\n' if lead else "")
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def heading(text: str, *, level: int = 2) -> str:
    """The title of a section, or of a part of one with a higher level."""
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, *, warning: bool = False, note: bool = False) -> str:
    """A paragraph; a warning is set off, a note is small."""
    kind = ' class="warning"' if warning else ' class="note"' if note else ""
    return f"<p{kind}>{escape(text)}</p>"


def link(source: str, text: str) -> str:
    """A paragraph that leads to a file, by its path relative to the page, with "/"."""
    return f'<p><a href="{escape(quote(source))}">{escape(text)}</a></p>'


def tiles(pairs: Mapping[str, str]) -> str:
    """The most important figures, large: what they are and their values."""
    parts = (f"<div><dd>{escape(value)}</dd><dt>{escape(name)}</dt></div>" for name, value in pairs.items())
    return f'<dl class="tiles">{"".join(parts)}</dl>'


def details(title: str, body: str) -> str:
    """HTML that is seen once its title is clicked at."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    strong: Iterable[int] = (),
    text: Iterable[int] = (),
    caption: str = "",
) -> str:
    """Cells as texts; the first column is a name, the others are numbers.

    strong: indices of rows to set off. text: of columns that hold texts too.
    """
    marked, texts = set(strong), set(text)

    def line(values: Sequence[str], tag: str) -> str:
        kinds = (' class="text"' if column in texts else "" for column in range(len(values)))
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for cell, kind in zip(values, kinds, strict=True))

    lines = []
    for index, row in enumerate(rows):
        cells = line(row, "td")
        lines.append(f'<tr class="strong">{cells}</tr>' if index in marked else f"<tr>{cells}</tr>")
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    head, body = line(header, "th"), "\n".join(lines)
    return f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def facts(pairs: Mapping[str, object]) -> str:
    """Names and what they are, such as settings."""
    lines = [f'<tr><td>{escape(name)}</td><td class="text">{escape(str(value))}</td></tr>' for name, value in pairs.items()]  # fmt: skip # noqa: E501
    return f'<div class="scroll"><table><tbody>\n{"".join(lines)}\n</tbody></table></div>'


def figure(
    source: str, caption: str = "", *, dark: str = "", width: int | None = None, height: int | None = None
) -> str:
    """A picture by its path relative to the page, with "/", or a data: address. Size in pixels, if known.

    dark: the picture for dark pages, if it is another one.
    """
    size = f' width="{width}" height="{height}"' if width and height else ""
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    image = f'<img src="{_address(source)}" alt="{escape(caption)}" loading="lazy"{size}>'
    if dark:
        image = f'<picture><source media="(prefers-color-scheme: dark)" srcset="{_address(dark)}">{image}</picture>'
    return f"<figure>{image}{text}</figure>"


def _address(source: str) -> str:
    return escape(source if source.startswith("data:") else quote(source))


def figures(parts: Iterable[str]) -> str:
    """Pictures beside each other as far as there is room."""
    return '<div class="figures">' + "\n".join(parts) + "</div>"


def curve_plot(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x_title: str,
    y_title: str,
    from_zero: bool = True,
) -> str:
    """Lines through (x, y) points, each with its name, as SVG. Points that are not finite are left out."""
    kept = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in lines.items()}
    points = [point for line in kept.values() for point in line]
    if not points:
        return paragraph(f"{title}: nothing to show")
    x_ticks = _ticks(min(x for x, _ in points), max(x for x, _ in points))
    least = min(y for _, y in points)
    y_ticks = _ticks(min(0.0, least) if from_zero else least, max(y for _, y in points))
    x_low, x_high = min(x_ticks[0], *(x for x, _ in points)), max(x_ticks[-1], *(x for x, _ in points))
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def at_x(x: float) -> float:
        return _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def at_y(y: float) -> float:
        return _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_text(_LEFT, 18, title, anchor="start", size=14)]
    for tick in y_ticks:
        parts.append(_line(_LEFT, at_y(tick), _WIDTH - _RIGHT, at_y(tick), "#d9dee5"))
        parts.append(_text(_LEFT - 6, at_y(tick) + 4, f"{tick:g}", anchor="end"))
    for tick in x_ticks:
        parts.append(_line(at_x(tick), _HEIGHT - _BOTTOM, at_x(tick), _HEIGHT - _BOTTOM + 4, "#5b6675"))
        parts.append(_text(at_x(tick), _HEIGHT - _BOTTOM + 18, f"{tick:g}"))
    parts.append(_line(_LEFT, _HEIGHT - _BOTTOM, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM, "#5b6675"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, x_title))
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(_text(14, middle, y_title, extra=f' transform="rotate(-90 14 {middle:.1f})"'))
    for index, (name, line) in enumerate(kept.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3" fill="{colour}"/>' for x, y in line]
        at, anchor = (_WIDTH, "start") if len(kept) >= _MANY else (_WIDTH - _RIGHT, "end")
        parts.append(_text(at, _TOP + 2 + 15 * index, name, anchor=anchor, colour=colour))
    width, height = _WIDTH, _HEIGHT
    if len(kept) >= _MANY:
        width += round(_LETTER * max(map(len, kept))) + _RIGHT
        height = max(height, _TOP + 15 * len(kept))
    return (
        f'<figure><svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" font-family="sans-serif">{"".join(parts)}</svg></figure>'
    )


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from at most `low` to at least `high`, about five."""
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(
    x: float, y: float, text: str, *, anchor: str = "middle", size: int = 12, colour: str = "#1c2430", extra: str = ""
) -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}"{extra}'
    return f"<text {where}>{escape(text)}</text>"
