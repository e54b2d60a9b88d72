"""Scores of synthetic images and of the segmenter trained on them."""
