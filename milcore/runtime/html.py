"""Pieces of HTML; every text is escaped."""

import base64
import html
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a row of column names.

    Args:
        header: names of the columns.
        rows: cells by column.
    """
    names = "".join(f'<th style="text-align:left">{html.escape(name)}</th>' for name in header)
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>"


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
