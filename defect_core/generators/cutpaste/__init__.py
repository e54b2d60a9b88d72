"""CutPaste: a patch of the normal image itself, pasted elsewhere."""
