"""Frozen encoders: patches to features. A row of a table is one function, or a line of facts."""
