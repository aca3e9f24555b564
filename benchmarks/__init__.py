"""Measurements, one script each: `python -m benchmarks.NAME`. docs/benchmarks.md has the figures and machines."""
