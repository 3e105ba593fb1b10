"""Text without secrets and terminal codes, for logs that are kept."""

import os
import re
from collections.abc import Mapping

HIDDEN = "***"
# shorter values, such as "disabled", are words that stand elsewhere too
SHORTEST_SECRET = 8
SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|(?:ACCESS|ACCOUNT|STORAGE|API)_KEY|CREDENTIAL", re.IGNORECASE)
# variables that say where a secret lies; a secret itself may begin with a slash, too
PLACE_NAME = re.compile(r"(?:_FILE|_PATH|_URI|GOOGLE_APPLICATION_CREDENTIALS)$", re.IGNORECASE)
# the patterns take time in proportion to a line's length, which nobody limits
# the query of a presigned URL: S3, Google, Azure
PRESIGNED = r"\?[^\s\"'<>?]*(?:Signature=|AWSAccessKeyId=|X-Amz-|X-Goog-|\bsig=)[^\s\"'<>]*"
# a name such as token or AccountKey, then its value, in quotes (of JSON inside JSON, of bytes) or without
NAME = r"(?:secret|token(?!s\b)|passw(?:or)?d|(?:access|account|storage|api)_?key)\w{0,40}"
NAMED = rf"({NAME}\\?[\"']?\s*[=:]\s*(?:b(?=[\"']))?\\?[\"']?)(?:(?<=\")[^\"]+|(?<=')[^']+|[^\s\"',;}}&]+)"
SECRETS = (
    (re.compile(PRESIGNED, re.IGNORECASE), f"?{HIDDEN}"),
    (re.compile(r"(\bbearer\s+|authorization\W{1,6}basic\s+)[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"(\w://)[^/@\s:]*:[^/@\s]+@"), rf"\1{HIDDEN}@"),
    (re.compile(r"(\bCredential=)[^\s,/]+(?=/\d{8}/)"), rf"\1{HIDDEN}"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), HIDDEN),
    (re.compile(NAMED, re.IGNORECASE), rf"\1{HIDDEN}"),
)
# colours and other sequences of a terminal (ECMA-48), then what is left of control characters but the tab
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_]?)")
_CONTROLS = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f]")


def plain(line: str) -> str:
    """A line without terminal sequences and control characters; tabs stay."""
    return _CONTROLS.sub("", _ESCAPES.sub("", line))


def redact(line: str, variables: Mapping[str, str] | None = None) -> str:
    """A line with its secrets hidden.

    Secrets are values of the environment's keys, tokens and passwords, and what has the form of one: a presigned
    query, an authorisation, a password in a URL or beside its name.

    Args:
        line: of a log.
        variables: the environment; None: that of this process.
    """
    values = os.environ if variables is None else variables
    for name, value in values.items():
        if SECRET_NAME.search(name) and not PLACE_NAME.search(name) and len(value) >= SHORTEST_SECRET:
            line = line.replace(value, HIDDEN)
    for pattern, hidden in SECRETS:
        line = pattern.sub(hidden, line)
    return line
