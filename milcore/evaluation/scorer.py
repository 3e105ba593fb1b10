"""Models and decision rule of a finished run, which score new bags."""

import hashlib
from typing import NamedTuple

import torch

from milcore.config import RunSpec
from milcore.evaluation.decision import DecisionRule
from milcore.metrics.calibration import Temperature
from milcore.metrics.classification import Threshold
from milcore.mil.inference import BagPrediction
from milcore.mil.model import MILModel
from milcore.runtime.progress import log_line
from milcore.training.run_files import read_file
from milcore.training.run_folder import Run, read_metrics


class Scorer(NamedTuple):
    """Models of a run that score new bags.

    ``rule`` is None where the run has not been evaluated, and for other targets.
    """

    spec: RunSpec
    models: tuple[MILModel, ...]
    rule: DecisionRule | None
    device: torch.device

    @property
    def by_patient(self) -> bool:
        """True where a bag is all slides of a patient."""
        return self.spec.train.bag == "patient"

    def predicted_class(self, prediction: BagPrediction) -> int | None:
        """The class that the run's rule calls."""
        return None if self.rule is None else int(self.rule.predict(prediction.probability[None])[0])


def load_scorer(run_uri: str, device: torch.device, *, allow_program: bool, workers_here: int = 1) -> Scorer:
    """Load the models of a finished run.

    Args:
        run_uri: the run.
        device: of the predictions.
        allow_program: load an encoder that is a program (TorchScript) too.
        workers_here: processes that share the memory of this machine.

    Raises:
        InputError: the run is not finished, or its encoder is a program.
    """
    run = Run(run_uri)
    spec = run.spec()
    models = run.models(allow_program=allow_program, workers_here=workers_here, spec=spec)
    return Scorer(spec, models, _decision_rule(run, spec), device)


def _decision_rule(run: Run, spec: RunSpec) -> DecisionRule | None:
    """Decision rule that evaluation chose on validation.

    None before evaluation, or where an earlier version did it, and for other targets.
    """
    metrics = read_metrics(run) if spec.train.target == "classification" else None
    if metrics is None:
        return None
    if "temperature" not in metrics:
        log_line(f"no class is predicted: an earlier version evaluated {run.uri}; run milcore evaluate again")
        return None
    threshold = None if metrics["threshold"] is None else Threshold(metrics["threshold"], metrics["threshold_origin"])
    return DecisionRule(threshold, Temperature(metrics["temperature"], metrics["temperature_origin"]))


def models_digest(run: Run, spec: RunSpec) -> str:
    """SHA-256 over the run's model files."""
    models = [read_file(member.model_uri) for member in run.members(spec.folds)]
    return hashlib.sha256(b"".join(models)).hexdigest()
