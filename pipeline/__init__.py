"""The pipelines, for users of the SDK: ``from pipeline import attention_mil, predict, sweep``."""

from pipeline.dag import attention_mil
from pipeline.predict import predict
from pipeline.sweep import sweep

__all__ = ["attention_mil", "predict", "sweep"]
