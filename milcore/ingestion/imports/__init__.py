"""Import of instances made elsewhere, one reader per kind of source.

Readers write nothing and know no store; ``import_cohort.py`` writes.
"""
