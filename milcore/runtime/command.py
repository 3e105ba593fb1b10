"""Border of every command.

An error is one line and an exit code, never a traceback.
"""

import contextlib
from collections.abc import Iterator
from typing import NoReturn

from milcore.errors import InputError, MILError

# ruff: noqa: PLC0415 - compiling a pipeline takes this without what storage and progress need


@contextlib.contextmanager
def exit_codes(program: str = "milcore") -> Iterator[None]:
    """Exit with an error's one line and code.

    Args:
        program: begins the line.
    """
    try:
        yield
    except MILError as error:
        _exit(f"{program}: {error.line}", error.exit_code)
    except Exception as error:
        from milcore.runtime.storage import IO_ERRORS

        if not isinstance(error, IO_ERRORS):
            raise
        # an object that a command cannot do without, and did not name itself
        absent = isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError))
        line = f"{program}: {type(error).__name__}: {' '.join(str(error).split())}"
        _exit(line, InputError.exit_code if absent else MILError.exit_code)


def _exit(line: str, code: int) -> NoReturn:
    from milcore.runtime.progress import log_line

    log_line(line)
    raise SystemExit(code) from None
