"""Outcome of an ingestion or import: slides that are ok, and those in quarantine."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from milcore.runtime import html
from milcore.store.store import PatchStore


@dataclass(frozen=True)
class IngestReport:
    """Outcome of every slide of a cohort.

    Args:
        store: the patch store.
        ok: ids of the slides that can be read.
        quarantined: reason of every other slide, by id.
        patches: number of all patches (or imported instances) of the slides that are ok.
        skipped: number of slides that needed no work.
        page: URI of the cohort's overview; empty for an import.
    """

    store: PatchStore
    ok: list[str]
    quarantined: Mapping[str, str]
    patches: int
    skipped: int
    page: str = ""

    def as_dict(self) -> dict[str, object]:
        """The result as the command line prints it with ``--json``."""
        page = {"page": self.page} if self.page else {}
        counts = {"patches": self.patches, "skipped": self.skipped}
        return {"ok": self.ok, "quarantined": dict(self.quarantined), **counts, **page}

    @property
    def line(self) -> str:
        """The counts in one line."""
        return f"{len(self.ok)} slides ok, {len(self.quarantined)} quarantined, {self.patches} patches"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.store.uri}: {self.line})"

    def _repr_html_(self) -> str:
        """Counts, reasons of the quarantine and thumbnails, for a notebook."""
        reasons = html.table(["quarantined", "reason"], self.quarantined.items()) if self.quarantined else ""
        return f"{html.line(self.line)}{reasons}{self.store._repr_html_()}"


@dataclass(frozen=True, repr=False)
class ImportReport(IngestReport):
    """Outcome of every slide of an import.

    Args:
        features: their name; None of patches.
        feature_types: number of slides by the type in which their features are stored.
        unlabelled: files without a label, left out.
        without_picture: reason why a slide's own file could not be read, by id.
    """

    features: str | None = None
    feature_types: Mapping[str, int] = field(default_factory=dict)
    unlabelled: list[str] = field(default_factory=list)
    without_picture: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """The result as the command line prints it with ``--json``."""
        return super().as_dict() | {
            "features": self.features,
            "feature_types": dict(self.feature_types),
            "unlabelled": self.unlabelled,
            "without_picture": dict(self.without_picture),
        }

    @property
    def line(self) -> str:
        """The counts in one line."""
        return f"{len(self.ok)} slides ok, {len(self.quarantined)} quarantined, {self.patches} instances"
