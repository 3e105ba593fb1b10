"""The patch store: one Zarr group per slide."""
