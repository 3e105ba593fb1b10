"""Pieces of HTML; every text is escaped."""

import base64
import html
from collections.abc import Iterable, Sequence
from importlib import resources

from markupsafe import Markup

ROWS_SHOWN = 100
# of a table that pages: rows of a page, and in the file
PAGE_ROWS = 500
MOST_ROWS = 20_000


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a row of column names; at most 100 rows are shown.

    Args:
        header: names of the columns.
        rows: cells by column.
    """
    names = "".join(f'<th style="text-align:left">{html.escape(name)}</th>' for name in header)
    rows = list(rows)
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows[:ROWS_SHOWN])
    more = line(f"and {len(rows) - ROWS_SHOWN} more") if len(rows) > ROWS_SHOWN else ""
    return f"<table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>{more}"


def _cell(value: object) -> str:
    return f'<td style="text-align:left">{html.escape(str(value))}</td>'


def line(text: str) -> str:
    """A line of text."""
    return f"<div>{html.escape(text)}</div>"


def picture(data: bytes, kind: str, caption: str) -> str:
    """A picture with its caption below, to stand beside others.

    Args:
        data: the file.
        kind: of the file: ``jpeg`` or ``png``.
        caption: text below.
    """
    text = html.escape(caption)
    return (
        '<figure style="display:inline-block;margin:4px;vertical-align:top">'
        f'<img src="{data_uri(data, kind)}" alt="{text}"><figcaption>{text}</figcaption></figure>'
    )


def data_uri(data: bytes, kind: str) -> str:
    """Data URI of a picture, which a browser reads without a request."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def asset(package: str, name: str) -> Markup:
    """A package's own script or style, which goes into a page unchanged."""
    return Markup(resources.files(package).joinpath(name).read_text("utf-8"))  # noqa: S704 - our own file


def table_script() -> Markup:
    """Script of tables that sort, filter and page: ``pageTable``."""
    return asset("milcore.runtime", "table.js")
