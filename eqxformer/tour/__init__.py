"""A walk through every component: what it is, its formula, the line to type, the shapes it gives."""

from eqxformer.tour.walk import tour

__all__ = ["tour"]
