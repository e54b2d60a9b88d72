"""CADiff (Tong et al. 2026): context and anomaly tokens, a mask-controlled branch, and an intensity for each defect."""
