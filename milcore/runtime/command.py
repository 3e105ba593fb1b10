"""Border of every command.

An error is one line and an exit code, never a traceback.
"""

import contextlib
from collections.abc import Iterator

from milcore.errors import InputError, MILError
from milcore.runtime.progress import log_line
from milcore.runtime.storage import IO_ERRORS


@contextlib.contextmanager
def exit_codes(program: str = "milcore") -> Iterator[None]:
    """Exit with an error's one line and code.

    Args:
        program: begins the line.
    """
    try:
        yield
    except MILError as error:
        log_line(f"{program}: {error.line}")
        raise SystemExit(error.exit_code) from None
    except IO_ERRORS as error:
        # an object that a command cannot do without, and did not name itself
        absent = isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError))
        log_line(f"{program}: {type(error).__name__}: {' '.join(str(error).split())}")
        raise SystemExit(InputError.exit_code if absent else MILError.exit_code) from None
