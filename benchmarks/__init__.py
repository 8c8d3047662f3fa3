"""Speed beside what a user would pick instead (`python -m benchmarks`), and growth with the work (`python -m
benchmarks.growth`)."""
