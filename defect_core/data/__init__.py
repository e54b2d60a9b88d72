"""Real images and masks, how they are read, split, changed and listed; numpy and PIL only."""
