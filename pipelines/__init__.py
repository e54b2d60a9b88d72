"""The Dagster project of a factory: assets, checks, jobs, schedule, sensors, and what the UI shows.

A module here calls `defect_core` and DVC. It computes no result: the work of a stage runs in a child process.
No module uses `from __future__ import annotations`, because Dagster reads the types of contexts and configs.
"""
