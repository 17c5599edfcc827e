"""The stops of the tour in their order, and what they begin with."""

from eqxformer.tour.parts import PARTS
from eqxformer.tour.stop import BEGIN, SIZES, Stop
from eqxformer.tour.wholes import WHOLES

__all__ = ["BEGIN", "SIZES", "STOPS", "Stop"]

STOPS = (*PARTS, *WHOLES)
