"""Description of a model that is served: name, inputs, outputs and digests."""

from typing import Any, NamedTuple

from milcore.config import EncoderRecord

VERSION_CHARACTERS = 12


class ServedModel(NamedTuple):
    """Model of a run, as clients see it.

    Args:
        name: in the paths of requests.
        run: URI of the run.
        features: values of an instance.
        is_placed: the pooling reads coords.
        columns: of an answer, with the type of each: ``FP64`` or ``BYTES``.
        models_sha256: digest of the weights.
        encoder: that made the run's features; None where they were imported.
        encoder_id: text on what made the imported features; None where there is none.
        summary: classes, threshold and temperature, or target, columns of follow-up and cut points; the notice.
    """

    name: str
    run: str
    features: int
    is_placed: bool
    columns: dict[str, str]
    models_sha256: str
    encoder: EncoderRecord | None
    encoder_id: str | None
    summary: dict[str, Any]

    @property
    def version(self) -> str:
        """First characters of the digest of the weights."""
        return self.models_sha256[:VERSION_CHARACTERS]

    @property
    def encoder_name(self) -> str | None:
        """Digest of the encoder's weights, or the text of an import.

        None where the run has neither.
        """
        return self.encoder_id if self.encoder is None else self.encoder.weights_digest

    def metadata(self) -> dict[str, Any]:
        """Metadata of the model for a plain request."""
        encoder = None if self.encoder is None else self.encoder.model_dump()
        return {
            "model": self.name, "version": self.version, "features": self.features, "columns": list(self.columns),
            "models_sha256": self.models_sha256, "encoder": encoder, "encoder_id": self.encoder_id, **self.summary,
        }  # fmt: skip
