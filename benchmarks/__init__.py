"""Measurements, each a script of its own: `python -m benchmarks.NAME`. Figures and machines: docs/benchmarks.md."""
