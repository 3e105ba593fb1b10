"""Rights of the launcher in its namespace.

They are the Role in ``k8s/base``; a test holds both to the launcher's calls.
"""

from typing import NamedTuple


class Right(NamedTuple):
    """A verb on a resource of an API group.

    A subresource stands behind a slash.
    """

    verb: str
    group: str
    resource: str

    @property
    def text(self) -> str:
        """The right as ``kubectl auth can-i`` takes it."""
        return f"{self.verb} {self.resource}{f'.{self.group}' if self.group else ''}"


LAUNCHER_RIGHTS = (
    *(Right(verb, "ray.io", "rayjobs") for verb in ("create", "get", "list", "patch", "delete")),
    Right("list", "", "pods"),
    Right("get", "", "pods/log"),
    Right("list", "", "events"),
)
