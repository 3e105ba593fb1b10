"""The headless Chromium of the tests of pages."""

from tests.chromium import browser

__all__ = ["browser"]
