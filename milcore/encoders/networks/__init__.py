"""Networks of the frozen encoders."""
