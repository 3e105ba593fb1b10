"""Conformance of a cluster: cases that run on any Kubernetes, and those of launcher and doctor on a fake one."""
