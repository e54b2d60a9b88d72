"""A project on disk: its parameters, its paths, and what it holds for the library.

A module belongs here if it turns a project into plain objects of the library. Packages below this one never take a
`Project`.
"""
