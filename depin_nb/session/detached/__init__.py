"""Detached runs: a cell's names are captured and sent off, a process beside the hub trains, a notebook binds what it left."""

from .run import DetachedRun
from .sending import detach, detach_function, held

__all__ = ["DetachedRun", "detach", "detach_function", "held"]
