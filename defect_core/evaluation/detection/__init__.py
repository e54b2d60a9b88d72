"""Anomaly detectors that are trained on normal images only, with and without generated ones."""
