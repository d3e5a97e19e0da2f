"""PTX text to kernels: flat lists of instructions that know their CUDA source line.

    Module   the kernels of one PTX text, and its .const and .global variables
    Kernel   parameters, instructions, and how much shared and local memory they want
    Op       one instruction: `@guard name.mods dests, sources`

Calls of device functions are inlined: a register, label or .local variable of the callee becomes
one of the caller's, its parameters become .local variables. So a machine needs no call stack.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

SIZES = {"pred": 1, "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2,
         "b32": 4, "u32": 4, "s32": 4, "f32": 4, "tf32": 4, "f16x2": 4, "bf16x2": 4,
         "b64": 8, "u64": 8, "s64": 8, "f64": 8}  # fmt: skip

STATIC_BASE = 1 << 16  # device address of the first .const or .global variable; below is unmapped

# Opcodes whose first operand is not a result.
NO_RESULT = {"st", "red", "bra", "brx", "ret", "exit", "bar", "barrier", "membar", "fence", "cp",
             "trap", "prefetch", "prefetchu", "nanosleep", "call", "discard", "brkpt"}  # fmt: skip

SPECIAL = re.compile(
    r"%(n?tid\b|n?ctaid\b|laneid|n?warpid|lanemask|clock|globaltimer|n?smid|pm\d|"
    r"dynamic_smem_size|total_smem_size|gridid|envreg)"
)


class ParseError(ValueError):
    """PTX that sim cannot take: an indirect or recursive call, or a syntax it does not know."""


class Reg(NamedTuple):
    """A register: its index in the machine, and its width in bits (1: a predicate)."""

    index: int
    bits: int


class Number(NamedTuple):
    """An immediate: an int, or the bits of a float with its width."""

    value: int
    float_bits: int = 0


class Special(NamedTuple):
    """A special register such as %tid.x."""

    name: str


@dataclass(slots=True, eq=False)
class Symbol:
    """A variable in memory. address: within its space, given when all of the kernel is known."""

    name: str
    space: str
    size: int
    align: int
    address: int = -1
    data: bytes = b""


class Address(NamedTuple):
    """[base + offset]"""

    base: Reg | Symbol | Number
    offset: int


class Label(NamedTuple):
    name: str


Operand = Any  # Reg, Number, Special, Symbol, Address, Label, or a tuple of operands for {a, b}


@dataclass(slots=True)
class Op:
    """One instruction. guard: (predicate, negated), or None for an instruction without @p."""

    pc: int
    name: str
    mods: tuple[str, ...]
    dests: tuple[Operand, ...]
    sources: tuple[Operand, ...]
    guard: tuple[Reg, bool] | None
    file: int
    line: int
    text: str
    dtype: Any = None  # this and inputs are bound by program.py
    inputs: tuple[Any, ...] = ()

    @property
    def types(self) -> list[str]:
        """The type modifiers in the order they stand: ['f32'] of fma.rn.ftz.f32."""
        return [mod for mod in self.mods if mod in SIZES]


@dataclass(slots=True)
class Param:
    name: str
    type: str  # "u64", "f32", ...; "b8" for a struct by value
    size: int
    offset: int


@dataclass(slots=True)
class Kernel:
    name: str
    params: list[Param]
    ops: list[Op] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # -> pc
    tables: dict[str, list[str]] = field(default_factory=dict)  # .branchtargets of brx.idx
    registers: list[Reg] = field(default_factory=list)
    shared: list[Symbol] = field(default_factory=list)
    shared_static: int = 0  # bytes; dynamic shared memory starts here
    local_bytes: int = 0  # a thread


@dataclass(slots=True)
class Module:
    files: dict[int, str]  # number in .loc -> path
    variables: dict[str, Symbol]
    functions: dict[str, _Function]

    @property
    def kernels(self) -> list[str]:
        """The names of the kernels."""
        return [name for name, function in self.functions.items() if function.entry]

    @property
    def statics(self) -> list[Symbol]:
        """The .const and .global variables, which have addresses in global memory."""
        return [symbol for symbol in self.variables.values() if symbol.space in ("const", "global")]

    def kernel(self, name: str) -> Kernel:
        """That kernel, with all that it calls. Raises: ParseError."""
        return _Emitter(self.functions[name], self.functions, self.variables).kernel


def parse(ptx: str) -> Module:
    """A PTX text, cut into functions and variables. Raises: ParseError."""
    files: dict[int, str] = {}
    variables: dict[str, Symbol] = {}
    functions: dict[str, _Function] = {}
    body: list[str] | None = None
    depth = 0
    for text in _statements(ptx):
        if text == "{":
            depth += 1
        if text == "}":
            depth -= 1
            if depth == 0:
                body = None
                continue
        if body is not None:
            if depth > 1 or text != "{":
                body.append(text)
        elif match := re.match(r'\.file\s+(\d+)\s+"(.*?)"', text):
            files[int(match[1])] = match[2]
        elif re.search(r"\.(entry|func)\b", text):
            function = _Function.from_header(text)
            if not function.extern:
                functions[function.name] = function
                body = function.body
        elif symbol := _variable(text):
            variables[symbol.name] = symbol

    module = Module(files, variables, functions)
    _place(module.statics, STATIC_BASE)
    return module


def _statements(ptx: str) -> Iterator[str]:
    """Statements without their ';', labels with their ':', braces of scopes, and .loc lines."""
    ptx = re.sub(r"/\*.*?\*/", " ", ptx, flags=re.S)
    text = ""  # of the statement so far
    skip_section = False
    for piece in re.split(r"(//[^\n]*|\"[^\"]*\"|[;{}\n]|(?<!:):(?!:))", ptx):
        head = text.strip()
        if piece.startswith("//"):
            continue
        if skip_section:
            skip_section = piece != "}"
        elif piece == ";":
            yield head
            text = ""
        elif piece == "\n" and re.match(r"\.(loc|file|version|target|address_size)\b", head):
            yield head
            text = ""
        elif piece == ":" and re.fullmatch(r"[\w$%]+", head):
            yield head + ":"
            text = ""
        elif piece in ("{", "}") and not head:
            yield piece
        elif piece == "{" and head.startswith(".section"):
            skip_section = True
            text = ""
        elif piece == "{" and re.search(r"\.(entry|func)\b", head):
            yield head
            yield "{"
            text = ""
        else:
            text += " " if piece == "\n" else piece


def _variable(text: str) -> Symbol | None:
    """`.shared .align 4 .b8 name[256]` and the like, or None."""
    match = re.match(
        r"(?:\.(?:visible|extern|weak|common)\s+)*\.(const|global|shared|local|param)\s+"
        r"(?:\.align\s+(\d+)\s+)?(?:\.v\d\s+)?\.(\w+)\s+([\w$%]+)((?:\[\d*\])*)\s*(?:=\s*(.*))?$",
        text,
        re.S,
    )
    if not match:
        return None
    space, align, kind, name, extents, init = match.groups()
    size = SIZES[kind]
    for extent in re.findall(r"\[(\d*)\]", extents):
        size *= int(extent or 0)
    data = b""
    if init:
        values = [_number(v).value for v in re.findall(r"[^\s,{}]+", init)]
        data = b"".join(
            (v % 2 ** (8 * SIZES[kind])).to_bytes(SIZES[kind], "little") for v in values
        )
    return Symbol(name, space, size, int(align or SIZES[kind]), data=data)


def _place(symbols: list[Symbol], start: int) -> int:
    """Give each symbol the next aligned address; return the end."""
    for symbol in symbols:
        symbol.address = -(-start // symbol.align) * symbol.align
        start = symbol.address + symbol.size
    return start


def _number(text: str) -> Number:
    if match := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", text):
        return Number(int(match[1], 16), 32)
    if match := re.fullmatch(r"0[dD]([0-9a-fA-F]{16})", text):
        return Number(int(match[1], 16), 64)
    if re.fullmatch(r"-?\d+\.\d*(e[-+]?\d+)?", text):
        return Number(int.from_bytes(struct.pack("<d", float(text)), "little"), 64)
    try:
        return Number(int(re.sub(r"[Uu]$", "", text), 0))
    except ValueError:
        raise ParseError(f"sim does not know the PTX operand {text!r}") from None


def _split(text: str) -> list[str]:
    """Split at the commas that stand outside of brackets."""
    if "{" not in text and "(" not in text and "[" not in text:
        return [part.strip() for part in text.split(",") if part.strip()]
    return [part.strip() for part in re.split(r",(?![^\[{(]*[\]})])", text) if part.strip()]


@dataclass(slots=True)
class _Function:
    name: str
    entry: bool
    extern: bool
    results: list[Symbol]
    params: list[Symbol]
    body: list[str]

    @classmethod
    def from_header(cls, text: str) -> _Function:
        lists = re.findall(r"\(([^()]*)\)", text)
        outside = re.sub(r"\([^()]*\)", " ", text)
        match = re.search(r"\.(?:entry|func)\s+([\w$]+)", outside)
        if not match:
            raise ParseError(f"sim does not know the PTX function header {text!r}")
        entry = ".entry" in text
        has_result = re.search(r"\.func\s*\(", text) is not None
        symbols = [[_variable(part) for part in _split(group)] for group in lists]
        results = symbols.pop(0) if has_result else []
        params = symbols[0] if symbols else []
        known = [[s for s in group if s is not None] for group in (results, params)]
        return cls(match[1], entry, ".extern" in outside, known[0], known[1], [])


class _Emitter:
    """Turns one entry function, with all that it calls, into a Kernel."""

    def __init__(
        self, entry: _Function, functions: dict[str, _Function], variables: dict[str, Symbol]
    ) -> None:
        self.functions = functions
        self.kernel = Kernel(entry.name, [])
        self.local: list[Symbol] = []
        self.shared: list[Symbol] = []
        self.dynamic: list[Symbol] = []
        self.loc = (1, 0)
        self.scopes: list[dict[str, Any]] = [
            {n: copy(s) if s.space == "shared" else s for n, s in variables.items()}
        ]
        self.calls: list[str] = []
        self.inlined = 0
        self.last_label = ""

        offset = 0
        names: dict[str, Any] = {}
        for symbol in entry.params:
            offset = -(-offset // symbol.align) * symbol.align
            symbol.address = offset
            names[symbol.name] = symbol
            kind = {1: "b8", 2: "u16", 4: "u32", 8: "u64"}.get(symbol.size, "b8")
            self.kernel.params.append(Param(symbol.name, kind, symbol.size, offset))
            offset += symbol.size
        self._emit_body(entry, names, prefix="")
        for param, kind in zip(self.kernel.params, self._loaded_types(), strict=True):
            param.type = kind or param.type
        self.kernel.shared_static = _place(self.shared, 0)
        end = _place(self.dynamic, -(-self.kernel.shared_static // 16) * 16)
        if self.dynamic:
            self.kernel.shared_static = end
        self.kernel.shared = self.shared + self.dynamic
        self.kernel.local_bytes = _place(self.local, 0)

    def _loaded_types(self) -> Iterator[str | None]:
        """The type by which each parameter is read, which tells float from int."""
        loads = {
            base.address + op.sources[0].offset: op.types[-1]
            for op in self.kernel.ops
            if op.name == "ld"
            and isinstance(base := op.sources[0].base, Symbol)
            and base.space == "param"
        }
        for param in self.kernel.params:
            kind = loads.get(param.offset)
            yield kind if kind and SIZES[kind] == param.size else None

    def _emit_body(self, function: _Function, names: dict[str, Any], prefix: str) -> None:
        if function.name in self.calls:
            raise ParseError(
                f"{function.name} calls itself: sim inlines calls and takes no recursion"
            )
        self.calls.append(function.name)
        outer, self.scopes = self.scopes, [self.scopes[0], names, {}]
        end = f"{prefix}$end"
        for place, text in enumerate(function.body):
            if text == "{":
                self.scopes.append(self._labels_within(function.body, place, prefix))
            else:
                self._statement(text, prefix, end)
        self.kernel.labels[end] = len(self.kernel.ops)
        if function.entry:
            self._append(Op(0, "exit", (), (), (), None, *self.loc, "ret;"))
        self.scopes = outer
        self.calls.pop()

    def _statement(self, text: str, prefix: str, end: str) -> None:
        if text == "}":
            self.scopes.pop()
        elif text.endswith(":"):
            self.last_label = self._label(text[:-1], prefix)
            self.kernel.labels[self.last_label] = len(self.kernel.ops)
        elif match := re.match(r"\.loc\s+(\d+)\s+(\d+)", text):
            if int(match[2]):  # line 0: the compiler's own; it belongs to the line before
                self.loc = (int(match[1]), int(match[2]))
        elif match := re.match(r"\.reg\s+\.(\w+)\s+(.*)", text):
            self._declare_registers(match[1], match[2])
        elif text.startswith(".branchtargets"):
            names = _split(text.removeprefix(".branchtargets"))
            self.kernel.tables[self.last_label] = [self._label(name, prefix) for name in names]
        elif symbol := _variable(text):
            self.scopes[-1][symbol.name] = symbol
        elif text and not text.startswith("."):
            self._instruction(text, prefix, end)

    def _labels_within(self, body: list[str], start: int, prefix: str) -> dict[str, Any]:
        """The labels of an inner scope, such as inline PTX that stands in a loop, made unique."""
        labels: dict[str, Any] = {}
        depth = 0
        for text in body[start:]:
            depth += (text == "{") - (text == "}")
            if depth == 0:
                break
            if depth == 1 and text.endswith(":"):
                labels[text[:-1]] = Label(f"{prefix}{text[:-1]}#{len(self.kernel.ops)}")
        return labels

    def _label(self, name: str, prefix: str) -> str:
        for scope in reversed(self.scopes[2:]):
            if isinstance(label := scope.get(name), Label):
                return label.name
        return prefix + name

    def _declare_registers(self, kind: str, names: str) -> None:
        bits = 1 if kind == "pred" else 8 * SIZES[kind]
        for name in _split(names):
            if match := re.fullmatch(r"([\w$%]+)<(\d+)>", name):
                self.scopes[-1][match[1] + "<>"] = bits
            else:
                self.scopes[-1][name] = self._new_register(bits)

    def _new_register(self, bits: int) -> Reg:
        register = Reg(len(self.kernel.registers), bits)
        self.kernel.registers.append(register)
        return register

    def _instruction(self, text: str, prefix: str, end: str) -> None:
        match = re.match(r"(?:@(!?)\s*([\w$%]+)\s+)?([\w.:]+)\s*(.*)$", text, re.S)
        if not match:
            raise ParseError(f"sim does not know the PTX statement {text!r}")
        negated, guard, opcode, rest = match.groups()
        name, *mods = opcode.replace("::", "_").split(".")
        if name == "call":
            self._call(rest)
            return
        operands = (
            [self._operand(part) for part in _split(rest)] if name not in ("bra", "brx") else []
        )
        if name == "bra":
            operands = [Label(self._label(rest.strip(), prefix))]
        if name == "brx":
            index, table = _split(rest)
            operands = [self._operand(index), Label(self._label(table, prefix))]
        if name == "ret" and len(self.calls) > 1:
            name, mods, operands = "bra", ["uni"], [Label(end)]
        dests: tuple[Operand, ...] = ()
        if (name not in NO_RESULT or "red" in mods) and operands:
            first = operands.pop(0)
            dests = first if isinstance(first, tuple) and type(first) is tuple else (first,)
        guarding = (self._find(guard), bool(negated)) if guard else None
        self._append(
            Op(
                0,
                name,
                tuple(mods),
                dests,
                tuple(operands),
                guarding,
                *self.loc,
                " ".join(text.split()),
            )
        )

    def _append(self, op: Op) -> None:
        op.pc = len(self.kernel.ops)
        self.kernel.ops.append(op)

    def _call(self, text: str) -> None:
        """Inline `(results), function, (arguments)`: the callee's .param names become ours."""
        match = re.fullmatch(
            r"(?:\(([^()]*)\)\s*,\s*)?([\w$%]+)\s*(?:,\s*\(([^()]*)\))?\s*(?:,\s*[\w$]+)?",
            text.strip(),
        )
        name = match[2] if match else text
        function = self.functions.get(name)
        if match is None or function is None:
            hint = {"vprintf": "; printf is not simulated: store into an array instead"}.get(
                name, ": mark device functions __forceinline__, or define them in the same source"
            )
            raise ParseError(f"line {self.loc[1]}: sim cannot follow the call of {name}{hint}")
        results, arguments = (
            [self._find(n) for n in _split(g or "")] for g in (match[1], match[3])
        )
        names: dict[str, Any] = {}
        for ours, theirs in zip(
            results + arguments, function.results + function.params, strict=True
        ):
            names[theirs.name] = ours
        self.inlined += 1
        loc = self.loc
        self._emit_body(function, names, prefix=f"{name}#{self.inlined}:")
        self.loc = loc

    def _find(self, name: str) -> Any:
        """The register or symbol of that name, searched from the innermost scope outwards."""
        stem = name.rstrip("0123456789") + "<>"
        for scope in reversed(self.scopes):
            found = scope.get(name)
            if found is not None and type(found) is not Label:
                if type(found) is Symbol:
                    self._use(found)
                return found
            if stem in scope:
                scope[name] = self._new_register(scope[stem])
                return scope[name]
        raise ParseError(f"sim does not know the PTX name {name!r}")

    def _use(self, symbol: Symbol) -> None:
        """Allot memory to a variable at its first use."""
        lists = {"shared": self.shared, "local": self.local, "param": self.local}
        if symbol.space not in lists or symbol.address >= 0:
            return
        where = lists[symbol.space]
        if symbol.space == "param":  # of a call
            symbol.space = "local"
        if symbol.space == "shared" and symbol.size == 0:  # extern __shared__
            where = self.dynamic
        if symbol not in where:
            where.append(symbol)

    def _operand(self, text: str) -> Operand:
        head = text[0]
        if head == "%":
            if "|" in text:
                return tuple(self._operand(part) for part in text.split("|"))
            return Special(text) if SPECIAL.match(text) else self._find(text)
        if head == "[":
            base, _, offset = text[1:-1].replace(" ", "").partition("+")
            return Address(self._operand(base), int(offset or 0))
        if head in "{(":
            return tuple(self._operand(part) for part in _split(text[1:-1]))
        if head == "!":
            return ("!", self._operand(text[1:]))
        if text == "_":
            return None
        if head.isdigit() or head == "-":
            return _number(text)
        if "|" in text:
            return tuple(self._operand(part) for part in text.split("|"))
        return self._find(text)
