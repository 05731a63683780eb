"""Counting of MACs, numbers and bits of a network, layer by layer."""

from nasb.cost.counting import Count, LayerCount, count
from nasb.cost.table import render

__all__ = ["Count", "LayerCount", "count", "render"]
