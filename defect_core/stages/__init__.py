"""One module per stage: reads the project's inputs, calls the library, writes the outputs. Nothing else."""
