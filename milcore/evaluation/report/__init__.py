"""The report of a run: one HTML file that needs no network, and a model card. No torch; it is fed plain data."""

from milcore.evaluation.report.contents import (
    Curve,
    FlippingCurves,
    Picture,
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
    "Picture",
    "ReportData",
    "ShownPatch",
    "SlideView",
    "SplitCount",
    "Sweep",
    "model_card",
    "render",
]
