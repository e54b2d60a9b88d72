"""Disentangled DDIM inversion (Cho et al.): a defect inside the mask, the same background outside."""
