"""Report and model card of a run from plain data, without torch.

The report is one HTML file that needs no network.
"""

from milcore.evaluation.report.contents import (
    Curve,
    FlippingCurves,
    PictureSizes,
    ReportData,
    ShownPatch,
    SlideView,
    SplitCount,
    Sweep,
)
from milcore.evaluation.report.page import model_card, render

__all__ = [
    "Curve",
    "FlippingCurves",
    "PictureSizes",
    "ReportData",
    "ShownPatch",
    "SlideView",
    "SplitCount",
    "Sweep",
    "model_card",
    "render",
]
