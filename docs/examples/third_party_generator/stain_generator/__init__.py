"""Stains: dark spots with a soft edge on a normal image."""
