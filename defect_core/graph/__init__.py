"""The graph: the stage table, its instances, dvc.yaml, and the runners on this machine and on Ray.

A module belongs here if it knows stages but not what they do.
"""
