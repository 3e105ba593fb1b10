"""Readers of instances made elsewhere, one file per kind of source. They write nothing and know no store."""
