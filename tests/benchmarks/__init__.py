"""Benchmarks: run by hand, each prints a table. See `python -m tests.benchmarks --help`."""
