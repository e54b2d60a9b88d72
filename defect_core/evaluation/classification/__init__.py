"""The classifier of a product's defect types, trained once per arm and seed, and tested on real images."""
