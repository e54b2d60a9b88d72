"""Methods that make synthetic image-mask pairs: one folder each, all behind one contract (`base`)."""
