"""The pipelines, for users of the SDK: ``from pipeline import attention_mil``."""

from pipeline.dag import attention_mil

__all__ = ["attention_mil"]
