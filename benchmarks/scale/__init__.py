"""Cohorts of many slides: time, requests and memory of every command, beside files per slide."""
