"""One module per stage: it reads the inputs of the stage, calls the library, and writes the outputs.

Nobody imports these modules; `defect_core.graph.instances` runs them by name. Logic that two stages share belongs
to the library.
"""
