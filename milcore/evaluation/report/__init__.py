"""Report and model card of a run from plain data, without torch.

The report is one HTML file that needs no network.
"""

from milcore.evaluation.report.choice import ScoredSlide, choose_slides
from milcore.evaluation.report.contents import (
    Curve,
    FlippingCurves,
    PictureSizes,
    ReportData,
    ShownPatch,
    SlideView,
    SplitCount,
    SweepTable,
)
from milcore.evaluation.report.page import model_card, render

__all__ = [
    "Curve",
    "FlippingCurves",
    "PictureSizes",
    "ReportData",
    "ScoredSlide",
    "ShownPatch",
    "SlideView",
    "SplitCount",
    "SweepTable",
    "choose_slides",
    "model_card",
    "render",
]
