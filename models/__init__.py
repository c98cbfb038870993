"""Models, their registry and the loading of their weights."""

if "." not in __name__:
    raise ImportError("import cubeloom.models, not models: a second copy of the package would be made")
