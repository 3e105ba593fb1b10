"""Attention: maps, exports, localisation and checks."""
