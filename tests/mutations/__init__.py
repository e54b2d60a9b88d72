"""Mutations: deliberate faults in the methods, each with the test that must fail.

    python -m tests.mutations [PART-OF-A-NAME ...]   # run them, write docs/research/mutations.md if all ran
    python -m tests.mutations --list

A module of this package lists the mutations of one method as `MUTATIONS`.
"""
