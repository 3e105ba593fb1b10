"""Checks that say before the first run whether it will work: machine, store, cluster."""
