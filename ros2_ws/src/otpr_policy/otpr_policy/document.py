# SPDX-License-Identifier: Apache-2.0
"""A report's text apart from its form: blocks, written as Markdown or as one HTML page that needs no other file."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: left; white-space: nowrap; }
th { border-bottom: 2px solid #888; }
tr:hover td { background: #f4f6fa; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; }
img { max-width: 100%; }
.wide { overflow-x: auto; }
"""


@dataclass(frozen=True)
class Heading:
    """``level``: 1 for the title, 2 for a section."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """Each row has as many cells as the header."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A PNG file beside the report. ``text``: what it shows."""

    path: Path
    text: str


@dataclass(frozen=True)
class Lines:
    """Lines as they are: commands, names. ``code``: set as such, else as a list."""

    lines: tuple[str, ...]
    code: bool


Block = Heading | Text | Table | Picture | Lines


def markdown(blocks: Sequence[Block]) -> str:
    """As Markdown; pictures are files beside it."""
    return "\n".join(line for block in blocks for line in [*_markdown(block), ""])


def html(blocks: Sequence[Block]) -> str:
    """As one HTML page; pictures are inside it. Raises OSError when one cannot be read."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "report")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    body = "\n".join(_html(block) for block in blocks)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n'


def _markdown(block: Block) -> list[str]:
    match block:
        case Heading(text, level):
            return [f"{'#' * level} {text}"]
        case Text(text):
            return [text]
        case Table(header, rows):
            return [_line(header), _line(["---"] * len(header)), *map(_line, rows)]
        case Picture(path, text):
            return [f"![{text}]({path.name})"]
        case Lines(lines, code):
            return ["```", *lines, "```"] if code else [f"- {line}" for line in lines]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Text(text):
            parts = escape(text).split("`")  # what stands between two is code
            return "<p>" + "".join(f"<code>{part}</code>" if number % 2 else part for number, part in enumerate(parts)) + "</p>"
        case Table(header, rows):
            head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
            body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
            return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
        case Picture(path, text):
            data = base64.b64encode(path.read_bytes()).decode()
            return f'<p><img alt="{escape(text)}" src="data:image/png;base64,{data}"></p>'
        case Lines(lines, code):
            if code:
                return "<pre>" + "\n".join(map(escape, lines)) + "</pre>"
            return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"
