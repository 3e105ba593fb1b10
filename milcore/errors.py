"""Exceptions of milcore, each with a one-line message for the user.

A message names the input, the value expected, the value got, the values allowed and, where there is one, the remedy.
"""


class MILError(Exception):
    """Base class of all milcore errors.

    The CLI prints ``line`` and exits with ``exit_code``.
    """

    exit_code = 1

    @property
    def line(self) -> str:
        """The message on one line, list items separated by semicolons."""
        first, *rest = (part.strip() for part in str(self).splitlines())
        return f"{first} {'; '.join(rest)}".strip()


class InputError(MILError):
    """Invalid input from the user: an argument, a manifest, a config."""

    exit_code = 2


class SlideError(MILError):
    """A slide that cannot be used.

    The text is the quarantine reason; work on the other slides continues.
    """


class UnreachableSlideError(SlideError):
    """A slide whose file cannot be read now; a later run tries again."""


class StoreError(MILError):
    """A patch store or run folder is incomplete or lacks the requested content."""

    exit_code = 2


class DamageError(StoreError):
    """Stored bytes are not those that were written, or are absent."""


class AbsentFileError(DamageError, FileNotFoundError):
    """A file that a run or sweep publishes is absent.

    No damage where it may not be published yet.
    """


class UnreachableError(MILError):
    """Storage is full or unreachable; the same command may succeed later."""


class StorageError(UnreachableError, OSError):
    """Storage that refuses, fails or does not answer.

    Nothing is known of what lies there; an absent object is a ``FileNotFoundError``.
    """


class ClusterError(MILError):
    """A Ray job, worker group or trial failed for another reason than user input."""


class BusyError(MILError):
    """A folder that another process works on.

    The same command succeeds once that has ended.
    """
