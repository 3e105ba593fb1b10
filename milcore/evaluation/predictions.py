"""Predictions of new slides as Python objects, from what ``predict`` wrote."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from milcore.errors import InputError
from milcore.evaluation.attention.slide_attention import SlideAttention
from milcore.evaluation.predict import ATTENTION
from milcore.evaluation.survival_curves import survival_columns
from milcore.runtime import html, storage
from milcore.runtime.progress import format_quantity


@dataclass(frozen=True)
class Prediction:
    """Prediction of one slide.

    Args:
        uri: the slide's file; empty where a store was predicted, whose manifest has it.
        probabilities: by class; empty for another target.
        calibrated: by class, after the run's temperature scaling; empty where the run is not evaluated.
        predicted: the class that is called; None where the run is not evaluated.
        std: standard deviation over the models of folds; None for one model.
        risk: of survival, higher for an earlier event; None for classes.
        survival: of hazards, the probability of survival by time, at the cut points; else empty.
        patches: number of patches.
        predicted_value: of regression, in the unit of its column; None for another target.
    """

    slide_id: str
    patient_id: str
    uri: str
    probabilities: Mapping[str, float]
    calibrated: Mapping[str, float]
    predicted: str | None
    std: float | None
    patches: int
    attention: SlideAttention
    risk: float | None = None
    survival: Mapping[float, float] = field(default_factory=dict)
    predicted_value: float | None = None

    @property
    def probability(self) -> float:
        """Probability of the positive class of two.

        Raises:
            InputError: there are more classes.
        """
        if len(self.probabilities) != 2:
            raise InputError(
                f"probability: expected a run of two classes, got {len(self.probabilities)}; allowed: probabilities, "
                "by class"
            )
        return list(self.probabilities.values())[1]

    def _repr_html_(self) -> str:
        """The slide's row and overlay, for a notebook."""
        return html.table(_HEADER, [_cells(self)]) + self.attention._repr_html_()


class Predictions(Mapping[str, Prediction]):
    """Predictions by the slide's id, and the reasons of slides that cannot be scored.

    Research use only. Not for diagnosis.

    Args:
        summary: what ``predict`` returned.
        folder_uri: with the attention, which is read when it is asked for.
    """

    def __init__(self, summary: Mapping[str, Any], folder_uri: str) -> None:
        self._summary = summary
        self.classes: tuple[str, ...] = tuple(summary.get("classes", ()))
        self.quarantined: Mapping[str, str] = summary["quarantined"]
        rows = [row for row in summary["slides"] if row["status"] == "ok"]
        self._slides = {row["slide_id"]: _prediction(row, summary, folder_uri) for row in rows}

    @property
    def ok(self) -> list[str]:
        """Ids of the slides that are scored."""
        return list(self._slides)

    def __getitem__(self, slide_id: str) -> Prediction:
        if slide_id in self.quarantined:
            raise KeyError(f"{slide_id}: quarantined: {self.quarantined[slide_id]}")
        return self._slides[slide_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._slides)

    def __len__(self) -> int:
        return len(self._slides)

    def load(self) -> None:
        """Read the attention of every slide, so that the folder may go."""
        for prediction in self._slides.values():
            prediction.attention.load()

    def as_dict(self) -> dict[str, object]:
        """The content of ``predictions.json`` for these slides; of a store its like."""
        return dict(self._summary)

    def __repr__(self) -> str:
        return f"Predictions({len(self)} slides scored, {len(self.quarantined)} quarantined)"

    def _repr_html_(self) -> str:
        """A row per slide, for a notebook."""
        reasons = html.table(["quarantined", "reason"], self.quarantined.items()) if self.quarantined else ""
        return html.table(_HEADER, map(_cells, self._slides.values())) + reasons + html.line(self._summary["notice"])


_HEADER = ("slide", "called", "prediction", "patches")


def _cells(slide: Prediction) -> tuple[str, ...]:
    values = slide.probabilities if slide.risk is None else {"risk": slide.risk}
    text = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
    if slide.predicted_value is not None:
        text = format_quantity(slide.predicted_value)
    return (slide.slide_id, slide.predicted or "", text, str(slide.patches))


def _prediction(row: Mapping[str, Any], summary: Mapping[str, Any], folder_uri: str) -> Prediction:
    classes, times = summary.get("classes", ()), summary.get("cut_points", ())
    return Prediction(
        slide_id=row["slide_id"],
        patient_id=row["patient_id"],
        uri=row.get("uri", ""),
        probabilities=_by_class(row, "probability", classes),
        calibrated=_by_class(row, "calibrated", classes),
        predicted=row.get("called"),
        std=row["spread"],
        patches=row["patches"],
        attention=SlideAttention(storage.join(folder_uri, ATTENTION), row["slide_id"], storage.read_bytes),
        risk=row.get("risk"),
        survival={time: row[name] for time, name in zip(times, survival_columns(times), strict=True)},
        predicted_value=row.get("predicted_value"),
    )


def _by_class(row: Mapping[str, Any], column: str, classes: Sequence[str]) -> dict[str, float]:
    """Values by class.

    Those of two classes stand in one column, of the positive one. Other targets have none.
    """
    if not classes:
        return {}
    if len(classes) > 2:
        values = {name: row[f"{column}_{name}"] for name in classes}
    else:
        positive = row[column]
        values = dict(zip(classes, (None if positive is None else 1 - positive, positive), strict=True))
    return {name: value for name, value in values.items() if value is not None}
