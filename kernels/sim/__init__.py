"""sim: a GPU that one can read. NVRTC's PTX, interpreted with NumPy; no GPU and no driver.

    from minigan.kernels import sim
    sim.run(source, "scale", 4, 256, x, y, n, 2.0)        # grid 4, block 256, then the arguments

A fault of the kernel (race, stray access, unwritten memory, missed barrier) is a sim.Fault that
names line, block and thread. To read the code, in this order:

    nvrtc.py      CUDA C -> PTX, by NVIDIA's compiler
    ptx.py        what PTX is made of          parser.py, emit.py    its text -> instructions
    program.py    operands bound, basic blocks, liveness
    machine.py    lanes, divergence, barriers
    opcodes.py    the table of: arithmetic.py, bits.py, convert.py (with rounding.py)
    memory.py     global, shared, local        access.py    loads, stores, atomics, cp.async
    warp.py       shuffles, votes, tensor cores
    checks.py     what is a fault              order.py     what happened before what
    counters.py   what a profiler counts       launch.py    arguments in, results out

Not seen by it: bugs of ptxas, weak memory order, the last bits of approximate functions, caches,
time. Blocks run some 16,000 threads at a time: a block may wait for another (spinning on a flag)
only if both are among these.
"""

from . import access, arithmetic, bits, convert, warp  # noqa: F401  these register opcodes
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
