"""SeaS: separation and sharing fine-tuning, with masks read from the features of what is drawn (Dai et al. 2025)."""
