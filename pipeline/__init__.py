"""Scenes, the stages that work on them, and the stores they are written to."""

if "." not in __name__:
    raise ImportError("import cubeloom.pipeline, not pipeline: a second copy of the package would be made")
