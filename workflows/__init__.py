"""Workflows over catalogs: planning, running, reporting, the command line."""

if "." not in __name__:
    raise ImportError("import cubeloom.workflows, not workflows: a second copy of the package would be made")
