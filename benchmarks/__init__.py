"""Measurements of time and quality. They are not tests, because times vary between machines.

`make bench` runs the quick ones. `python -m benchmarks.NAME` runs one module; its docstring says what it needs.
"""
