"""Crop and paste: the cheap baseline that every generator must beat."""
