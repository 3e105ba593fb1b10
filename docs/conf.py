"""Sphinx configuration of the documentation: `make docs` builds it, offline, with every warning an error."""

import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from milcore import __version__

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "milcore"
author = "the milcore authors"
project_copyright = "the milcore authors; Apache-2.0. Research use only, not a medical device."
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "config_fields",
    "mathml",
]
exclude_patterns = ["extensions"]
nitpicky = True
nitpick_ignore_regex = [
    # types of other libraries, whose pages are not fetched, and of milcore's own that are not public
    (r"py:.*", r"(?!milcore\.\w+$).*"),
]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the committed output is shown; tests/docs/test_notebook.py executes it
html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

highlight_language = "text"
html_theme = "furo"
html_title = f"milcore {release}"
html_static_path = ["static"]
html_css_files = ["milcore.css"]
html_show_sourcelink = False
html_copy_source = False


def setup(app: Sphinx) -> None:
    """Read docstrings before napoleon does."""
    app.connect("autodoc-process-docstring", _without_colon, priority=400)


def _without_colon(*event: Any) -> None:
    """A dash for the colon in a property's first line, which napoleon takes for "type: description"."""
    _, what, _, _, _, lines = event
    if what == "property":
        lines[:1] = [re.sub(r": ", " — ", line, count=1) for line in lines[:1]]
