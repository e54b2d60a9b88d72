"""The `defectory` command, and what only it needs: new projects, protocols of the papers, checks of the environment.

Messages to users are printed here. The packages below raise errors and write to the log.
"""
