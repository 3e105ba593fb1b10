"""Text of data in a Markdown document, where it stands for itself.

CommonMark and its tables; HTML inside a document is text too.
"""

import re
from html import escape

from markupsafe import Markup

# an underscore between letters or digits is none
_MARKS = re.compile(r"([\\`*\[\]#|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_BREAKS = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]+")


def text(value: object) -> object:
    """Escape a text; other values and ``Markup`` stay as they are."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return Markup(_MARKS.sub(r"\\\1", escape(_BREAKS.sub(" ", value), quote=False)))  # noqa: S704 - escaped here


def code(value: object) -> Markup:
    """A code span; between backticks that are more than any inside."""
    line = _BREAKS.sub(" ", str(value)).replace("|", r"\|")
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if len(ticks) > 1 else ""
    return Markup(f"{ticks}{space}{line}{space}{ticks}")  # noqa: S704 - nothing inside ends it
