"""Measurements: speed next to other packages (`python -m benchmarks`), growth with the size of the work
(`python -m benchmarks.growth`)."""
