"""Allow-list of the URIs that stand in data.

Data are manifests, settings, and what stores and runs say of themselves. Others may have written them, so they do not
decide alone what this process reads. In a process started by hand a URI is a local path, ``s3://`` or ``https://``. In
a pod, a Ray job or a worker of another cluster it is ``s3://``, or a local path below MILCORE_ALLOWED_ROOTS, the
administrator's variable. Both know ``gs://`` and ``az://`` where their packages are installed. What an operator names
as an argument, a store, a run or a cluster profile, is not asked about here.
"""

import functools
import importlib.util
import os
from pathlib import Path

from milcore.errors import InputError
from milcore.runtime import storage

REMOTE = "MILCORE_REMOTE"
ROOTS = "MILCORE_ALLOWED_ROOTS"
# Kubernetes sets the second one in every container
_MARKS = (REMOTE, "KUBERNETES_SERVICE_HOST")
_PACKAGES = {"gs": "gcsfs", "az": "adlfs"}


def is_remote() -> bool:
    """True in a pod, a Ray job or a worker of another cluster."""
    return any(os.environ.get(name) for name in _MARKS)


def check_uri(uri: str, place: str) -> None:
    """Refuse a URI out of data that this process may not read.

    Args:
        uri: as the data has it.
        place: of the URI, named in the error.

    Raises:
        InputError: it is not allowed.
    """
    problem = uri_problem(uri)
    if problem is not None:
        raise InputError(f"{place}: {problem}")


def uri_problem(uri: str) -> str | None:
    """Reason to refuse a URI out of data; None where it may be read."""
    if storage.is_local(uri):
        return _path_problem(uri) if is_remote() else None
    scheme = uri.partition("://")[0]
    if "::" not in uri and scheme in _schemes():
        return None
    what = f"a chain of URIs ({scheme})" if "::" in uri else f"scheme {scheme}"
    return f"expected a URI that data may name, got {what} in {uri!r}; allowed: {_allowed()}"


def _path_problem(uri: str) -> str | None:
    # links and dots resolved: a path is where it leads
    path = Path(storage.absolute(uri))
    if any(path.is_relative_to(Path(root).resolve()) for root in _roots()):
        return None
    return f"expected a URI that data may name here, got a local path, {uri!r}; allowed: {_allowed()}"


def _schemes() -> list[str]:
    extra = [scheme for scheme, package in _PACKAGES.items() if _is_installed(package)]
    return ["s3", *([] if is_remote() else ["https"]), *extra]


@functools.cache
def _is_installed(package: str) -> bool:
    """True where a package can be imported.

    Looked for once, not for each slide of a cohort.
    """
    return importlib.util.find_spec(package) is not None


def _roots() -> list[str]:
    return [root for root in os.environ.get(ROOTS, "").split(os.pathsep) if root]


def _allowed() -> str:
    schemes = ", ".join(f"{scheme}://" for scheme in _schemes())
    if not is_remote():
        return f"a local path, file://, {schemes}"
    return f"{schemes}, local paths below {os.pathsep.join(_roots()) or 'none'} ({ROOTS}, set by the administrator)"
