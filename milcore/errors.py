"""The errors milcore raises on purpose: each is one clear line for the person who can mend it.

A message says what is wrong, what was got, what is allowed and what to do next.
"""


class MILError(Exception):
    """Root of every error milcore raises on purpose; the CLI prints its one line and exits with ``exit_code``."""

    exit_code = 1

    @property
    def line(self) -> str:
        """The message on one line, its list items parted by semicolons."""
        first, *rest = (part.strip() for part in str(self).splitlines())
        return f"{first} {'; '.join(rest)}".strip()


class InputError(MILError):
    """Something the user handed in (an argument, a manifest, a config) cannot be used."""

    exit_code = 2


class SlideError(MILError):
    """One slide cannot be used; the text is the quarantine reason, the other slides go on."""


class UnreachableSlideError(SlideError):
    """The file of a slide cannot be read now; a later run tries again."""


class StoreError(MILError):
    """A patch store or run folder lacks what was asked of it, is incomplete, or holds something else."""

    exit_code = 2


class UnreachableError(MILError):
    """Storage is full or away; the same command may succeed later."""


class ClusterError(MILError):
    """A Ray job, worker group or trial failed for a reason that is not the user's input."""
