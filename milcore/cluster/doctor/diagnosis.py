"""All checks that a call asks for, area by area."""

import contextlib
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

from milcore.cluster.doctor.finding import DoctorReport, Finding
from milcore.cluster.doctor.machine import machine_findings
from milcore.cluster.doctor.object_store import check_uri, store_findings


class Surroundings(NamedTuple):
    """Places to check beside this machine.

    Args:
        uri: of a store or run; None: none.
    """

    uri: str | None = None


def diagnose(surroundings: Surroundings, show: Callable[[Finding], object]) -> DoctorReport:
    """Run the checks and return their findings.

    Args:
        surroundings: places to check.
        show: gets each finding as it comes.

    Raises:
        InputError: a place cannot be checked at all.
    """
    uri = surroundings.uri
    surroundings = surroundings._replace(uri=None if uri is None else check_uri(uri))
    findings = list[Finding]()
    for area, of_area in _areas(surroundings):
        # Ctrl-C beside a check ends it, too, so that it removes its objects
        with contextlib.closing(of_area):
            for finding in of_area:
                findings.append(finding._replace(area=area))
                show(findings[-1])
    return DoctorReport(findings)


def _areas(surroundings: Surroundings) -> Iterator[tuple[str, Generator[Finding]]]:
    """Name of each area, and its checks."""
    yield "this machine", machine_findings()
    if surroundings.uri is not None:
        yield surroundings.uri, store_findings(surroundings.uri)
