"""Candidate operations, the NASB cell, its searchable twin, and Architecture, the JSON between search and training."""

from nasb.cells.architecture import Architecture, Edge
from nasb.cells.config import CellConfig

__all__ = ["Architecture", "CellConfig", "Edge"]
