"""Architecture search: strategies behind one interface, the cost-aware objective, derivation."""

from nasb.search.config import SearchConfig
from nasb.search.regression import Regression
from nasb.search.strategies import STRATEGIES

__all__ = ["STRATEGIES", "Regression", "SearchConfig"]
