"""Errors of storage, by cause, with what a user does about each."""

from botocore.exceptions import (
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
    SSLError,
)

from milcore.cluster.doctor.finding import Finding, failure
from milcore.errors import StorageError

RIGHTS = {
    "reach": "s3:ListBucket",
    "read": "s3:GetObject",
    "write": "s3:PutObject",
    "conditional write": "s3:PutObject",
    "round trip": "s3:GetObject",
    "bandwidth": "s3:PutObject and s3:GetObject",
}
KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_NO_CONNECTION = (EndpointConnectionError, ConnectTimeoutError, ConnectionError, TimeoutError)
# code that S3 answers -> what it says, next step
_ANSWERS = {
    "InvalidAccessKeyId": ("the store does not know the access key", "set AWS_ACCESS_KEY_ID to a key of this store"),
    "SignatureDoesNotMatch": ("the secret does not fit the access key", f"set {KEYS} to those of one key"),
    "ExpiredToken": ("the keys have expired", f"renew {KEYS} and AWS_SESSION_TOKEN"),
    "RequestTimeTooSkewed": ("this machine's clock differs from the store's", "set the clock, by NTP for instance"),
    "AuthorizationHeaderMalformed": ("the bucket is in another region", "set AWS_DEFAULT_REGION to the bucket's"),
    "PermanentRedirect": ("the bucket is in another region", "set AWS_DEFAULT_REGION to the bucket's"),
}
_DENIED = ("AccessDenied", "403", "Forbidden")


def storage_failure(check: str, uri: str, error: Exception, endpoint: str | None = None) -> Finding:
    """The failure of a check by an error of storage.

    Args:
        check: its name.
        uri: of the store or run.
        error: that ended it.
        endpoint: that was asked, where it is known.
    """
    text, remedy = _cause(check, uri, _root(error), endpoint)
    return failure(check, text, remedy)


def _root(error: BaseException) -> BaseException:
    """The error that the storage's own client raised."""
    while isinstance(error, StorageError | OSError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _cause(check: str, uri: str, error: BaseException, endpoint: str | None) -> tuple[str, str]:
    """The fact, and the next step of the user."""
    code = getattr(error, "response", {}).get("Error", {}).get("Code", "")
    bucket, line = uri.partition("://")[2].partition("/")[0], " ".join(str(error).split())
    if code in _ANSWERS:
        return _ANSWERS[code]
    if code == "NoSuchBucket":
        return f"there is no bucket {bucket}", "make it, or correct the URI"
    if code in _DENIED:
        remedy = "ask the store's administrator for it, or use other keys"
        return f"the keys lack {RIGHTS.get(check, 'access')} on {bucket}", remedy
    return _cause_here(uri, error, line, endpoint)


def _cause_here(uri: str, error: BaseException, line: str, endpoint: str | None) -> tuple[str, str]:
    """As ``_cause``, of an error that no store answered."""
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return "no keys of the object store", f"set {KEYS}"
    if isinstance(error, SSLError):
        return f"its certificate is not trusted: {line}", "set AWS_CA_BUNDLE to the file of your authority"
    if isinstance(error, _NO_CONNECTION) or (endpoint and isinstance(error, OSError)):
        where = f" at {endpoint}" if endpoint else ""
        return f"nothing answers{where}: {line}", "set AWS_ENDPOINT_URL to the address of your object store"
    if isinstance(error, PermissionError):
        return f"no permission on {uri}", "choose a folder that you may write, or ask for the permission"
    return f"{type(error).__name__}: {line}", "see what the storage says; then run this again"
