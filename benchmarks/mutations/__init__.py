"""Mutations: deliberate faults in the methods, each with the test that must fail.

    python -m benchmarks.mutations [PART-OF-A-NAME ...]   # run them, write docs/research/mutations.md if all ran
    python -m benchmarks.mutations --list
    python -m benchmarks.mutations --table            # write the table without running anything
    python -m benchmarks.mutations --check            # whether all apply to the source and are in the table

A module of this package lists the mutations of one method as `MUTATIONS`.
"""
