"""Architecture search: strategies behind one interface, the cost-aware objective, derivation."""

from nasb.search.config import SearchConfig
from nasb.search.evolution import Evolution
from nasb.search.optuna_search import Nsga2, Tpe
from nasb.search.population import RandomSearch
from nasb.search.regression import Regression
from nasb.search.reinforce import Reinforce
from nasb.search.strategies import STRATEGIES

__all__ = ["STRATEGIES", "Evolution", "Nsga2", "RandomSearch", "Regression", "Reinforce", "SearchConfig", "Tpe"]
