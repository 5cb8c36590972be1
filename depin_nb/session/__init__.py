"""What a user holds: a Session on a hub, the Runs that it trains, the Plan of one that wasn't started."""

from .options import TrainOptions
from .plan import Plan
from .run import Run
from .session import Session

__all__ = ["Plan", "Run", "Session", "TrainOptions"]
