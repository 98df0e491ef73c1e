"""One self-contained HTML page: text, tables and pictures, nothing fetched, no script.

Everything that goes in is escaped here, since models and data rows are strangers; pictures stand in the page itself.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1c2128; }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #d0d7de }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; text-align: left; border-bottom: 1px solid #e5e9ee; vertical-align: top }
th { font-weight: 600; background: #f6f8fa } td.number { text-align: right }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; vertical-align: top } img { max-width: 100%; height: auto }
figcaption { color: #57606a; font-size: .85rem; max-width: 30rem; overflow-wrap: anywhere }
p.text { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f8fa; padding: .6rem .8rem; border-radius: 4px }
code { background: #f6f8fa; padding: .1rem .3rem } mark { border-radius: 3px; padding: 0 .15em }
"""


@dataclass(frozen=True, slots=True)
class Html:
    """Markup that is safe as it is. Only this module and those that build on it make it; a plain str is escaped."""

    markup: str


Part = str | Html


def page(title: str, *parts: Part) -> str:
    """The whole document. A plain str among the parts is a paragraph."""
    body = "\n".join(_block(part).markup for part in parts)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
        f'<meta http-equiv=Content-Security-Policy content="{policy}">\n'
        '<meta name=viewport content="width=device-width">\n'
        f"<title>{escaped(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escaped(title)}</h1>\n"
        f"{body}\n</body>\n</html>\n"
    )


def section(title: str, *parts: Part) -> Html:
    """A heading and what belongs under it."""
    return Html(f"<h2>{escaped(title)}</h2>\n" + "\n".join(_block(part).markup for part in parts))


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Html:
    """Numbers stand at the right, with four decimals where they are not whole; None is a hyphen."""
    head = "".join(f"<th>{escaped(name)}</th>" for name in header)
    lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in rows)
    return Html(f"<table>\n<tr>{head}</tr>\n{lines}</table>")


def picture(data: bytes, mime_type: str, caption: str) -> Html:
    """A PNG or JPEG inside the page, with its caption below."""
    encoded = base64.b64encode(data).decode("ascii")
    shown = f'<img alt="{escaped(caption)}" src="data:{escaped(mime_type)};base64,{encoded}">'
    return Html(f"<figure>{shown}<figcaption>{escaped(caption)}</figcaption></figure>")


def bullets(items: Iterable[str]) -> Html:
    """A list of plain texts; nothing where there are none."""
    lines = "".join(f"<li>{escaped(item)}</li>" for item in items)
    return Html(f"<ul>{lines}</ul>" if lines else "")


def code(line: str) -> Html:
    """A line to be copied as it is."""
    return Html(f"<p><code>{escaped(line)}</code></p>")


def _block(part: Part) -> Html:
    return part if isinstance(part, Html) else Html(f"<p>{escaped(part)}</p>")


def _cell(value: object) -> str:
    if isinstance(value, Html):
        return f"<td>{value.markup}</td>"
    if isinstance(value, float):
        return f"<td class=number>{value:.4f}</td>"
    if isinstance(value, int):
        return f"<td class=number>{value}</td>"
    return f"<td>{'-' if value is None else escaped(str(value))}</td>"


def escaped(value: str) -> str:
    """Text as markup, for inside an element or attribute; characters that no page may hold are shown as their codes."""
    clean = "".join(c if c.isprintable() or c in "\n\t" else f"\\u{ord(c):04x}" for c in value)
    return html.escape(clean)
