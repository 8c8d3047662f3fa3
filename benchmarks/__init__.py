"""Measurements: speed next to other packages (`python -m benchmarks`), growth with the size of the work
(`python -m benchmarks.growth`), what must be shown on a GPU (`python -m benchmarks.cuda`)."""
