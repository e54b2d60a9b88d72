"""DRAEM-style defects: another texture, blended in under a Perlin-noise mask."""
