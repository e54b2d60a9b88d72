"""Measurements; none is a test, for machines are noisy. `make bench` runs the quick ones; `python -m benchmarks.NAME`
runs one of the others: backbone (needs a project with real images), ic_lpips, localisation, rescore."""
