"""A walk through every component: what it is, its formula, the line to type, its shapes."""

from eqxformer.tour.walk import tour

__all__ = ["tour"]
