"""AnomalyDiffusion: a defect's appearance and its place as learned words for a frozen diffusion model."""
