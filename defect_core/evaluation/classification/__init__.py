"""The second judge: a network that tells a product's defect types apart, trained once per arm and seed."""
