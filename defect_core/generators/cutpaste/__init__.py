"""CutPaste: a patch of the normal image, pasted at another place (Li et al. 2021).

This package contains the code of this method only. The registry finds it by `config.CONFIG` and `generator.GENERATOR`.
"""
