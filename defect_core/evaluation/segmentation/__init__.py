"""The segmenter: a segmentation network that is trained once per arm and seed, and tested on real images."""
