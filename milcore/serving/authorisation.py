"""Bearer token of a service.

It comes from a file or the environment, and the gateway knows its SHA-256 alone: Ray stores the arguments of a
deployment, and shows them.
"""

import hashlib
import hmac
import ipaddress
import os
import re

from milcore.config import ServeConfig
from milcore.errors import InputError
from milcore.runtime import storage
from milcore.serving.request_error import RequestError

TOKEN = "MILCORE_TOKEN"  # noqa: S105 - the name of a variable
# of RFC 6750, at least as long as 128 bits in base64
_FORM = re.compile(r"[A-Za-z0-9._~+/-]{22,4096}=*")


def token_digest(config: ServeConfig) -> str | None:
    """SHA-256 of the service's token; None where it needs none.

    Raises:
        InputError: the token is none, its file cannot be read, or other machines reach a service without one.
    """
    text = os.environ.get(TOKEN) if config.token_file is None else _read(config.token_file)
    if text is None:
        if not config.allow_anonymous and not _is_loopback(config.host):
            raise InputError(
                f"host: expected a token beside an address that other machines reach, got {config.host!r} without; "
                f"allowed: {TOKEN} in the environment, --token-file, --allow-anonymous, or --host 127.0.0.1"
            )
        return None
    token = text.strip()
    if not _FORM.fullmatch(token):
        raise InputError(
            f"{config.token_file or TOKEN}: expected a token of 22 to 4,096 letters, digits and -._~+/, got "
            f"{len(token)} characters, or others; make one by: openssl rand -hex 32"
        )
    return _digest(token)


def _read(uri: str) -> str:
    try:
        return storage.read_bytes(uri).decode("ascii", "replace")
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"token_file: expected a file with the token, got nothing at {uri}; write one there") from None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_token(digest: str | None, authorization: str | None) -> None:
    """Check the header Authorization of a request.

    The time that it takes tells nothing of the token.

    Args:
        digest: of the service's token; None: every request passes.
        authorization: the header; None: there is none.

    Raises:
        RequestError: 401, it has another token or none.
    """
    if digest is None:
        return
    scheme, _, token = (authorization or "").partition(" ")
    is_same = hmac.compare_digest(_digest(token.strip()), digest)
    if scheme.lower() != "bearer" or not is_same:
        raise RequestError(
            401,
            f"Authorization: expected Bearer and the service's token, got {'another' if authorization else 'none'}",
            {"WWW-Authenticate": "Bearer"},
        )


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
