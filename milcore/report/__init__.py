"""The report of a run: one HTML file that needs no network, and a model card. No torch; it is fed plain data."""

from milcore.report.data import ReportData, SlideView, SplitCount, TopPatch
from milcore.report.page import model_card, render

__all__ = ["ReportData", "SlideView", "SplitCount", "TopPatch", "model_card", "render"]
