"""Record of a cohort's annotations: digest of each file, and how they are read."""

from dataclasses import dataclass, field
from typing import Any

from milcore.config import AnnotationConfig
from milcore.errors import DamageError
from milcore.runtime import storage
from milcore.runtime.digest import with_own_digest, without_own_digest


@dataclass(frozen=True, slots=True)
class AnnotationRecord:
    """Annotations of a cohort as ingestion read them.

    Args:
        config: classes that count, and the origin of coordinates.
        sha256: of the annotation's file, by slide.
    """

    config: AnnotationConfig = field(default_factory=AnnotationConfig)
    sha256: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The content of ``annotations.json``, with its own digest."""
        return with_own_digest({"settings": self.config.model_dump(mode="json"), "files": self.sha256})


def read_annotation_record(uri: str) -> AnnotationRecord:
    """Read the record at a URI.

    Raises:
        FileNotFoundError: there is none.
        DamageError: it is not what was written.
    """
    try:
        values = without_own_digest(storage.read_json(uri), uri)
        files = dict(values["files"])
        return AnnotationRecord(AnnotationConfig.model_validate(values["settings"]), files)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise DamageError(
            f"{uri}: expected the record of annotations, got other JSON ({type(error).__name__}); run milcore ingest "
            "again"
        ) from None
