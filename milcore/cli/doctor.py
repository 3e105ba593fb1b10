"""Lines of the report of ``milcore doctor``."""

import typer

from milcore.runtime.progress import printable

_WIDTH = 8


class FindingLines:
    """Prints findings as they come, below the name of their area."""

    def __init__(self) -> None:
        self._area = ""

    def show(self, area: str, check: str, state: str, text: str, remedy: str) -> None:
        """Print a finding, with the next step below it."""
        if area != self._area:
            typer.echo(printable(area))
            self._area = area
        typer.echo(printable(f"  {state.upper() if state == 'failure' else state:{_WIDTH}} {check}: {text}"))
        if remedy:
            typer.echo(printable(f"  {'':{_WIDTH}} -> {remedy}"))
