"""Benchmarks: run by hand; they print tables."""
