"""The diffusion mathematics that the methods share."""
