"""sim: a GPU that one can read. NVRTC's PTX, interpreted with NumPy; no GPU and no driver.

    from minigan.kernels import sim
    sim.run(source, "scale", grid=4, block=256, x, y, n, 2.0)

Not seen by it: bugs of ptxas, weak memory order, the last bits of approximate functions, time.
"""

from .counters import Counters, Counts
from .launch import Module, Result, empty, load, run
from .machine import Fault
from .nvrtc import CompileError, CompilerMissing
from .ptx import ParseError

__all__ = [
    "CompileError",
    "CompilerMissing",
    "Counters",
    "Counts",
    "Fault",
    "Module",
    "ParseError",
    "Result",
    "empty",
    "load",
    "run",
]
