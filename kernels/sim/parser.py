"""PTX text, cut into functions and variables; emit.py makes kernels of the functions."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from .ptx import SIZES, Number, ParseError, Symbol

STATIC_BASE = 1 << 16  # device address of the first .const or .global variable; below is unmapped


@dataclass(slots=True)
class Function:
    name: str
    entry: bool
    extern: bool
    results: list[Symbol]
    params: list[Symbol]
    body: list[str]

    @classmethod
    def from_header(cls, text: str) -> Function:
        lists = re.findall(r"\(([^()]*)\)", text)
        outside = re.sub(r"\([^()]*\)", " ", text)
        match = re.search(r"\.(?:entry|func)\s+([\w$]+)", outside)
        if not match:
            raise ParseError(f"sim does not know the PTX function header {text!r}")
        entry = ".entry" in text
        has_result = re.search(r"\.func\s*\(", text) is not None
        symbols = [[variable(part) for part in split(group)] for group in lists]
        results = symbols.pop(0) if has_result else []
        params = symbols[0] if symbols else []
        known = [[s for s in group if s is not None] for group in (results, params)]
        return cls(match[1], entry, ".extern" in outside, known[0], known[1], [])


@dataclass(slots=True)
class Module:
    files: dict[int, str]  # number in .loc -> path
    variables: dict[str, Symbol]
    functions: dict[str, Function]

    @property
    def kernels(self) -> list[str]:
        """The names of the kernels."""
        return [name for name, function in self.functions.items() if function.entry]

    @property
    def statics(self) -> list[Symbol]:
        """The .const and .global variables, which have addresses in global memory."""
        return [symbol for symbol in self.variables.values() if symbol.space in ("const", "global")]


def parse(ptx: str) -> Module:
    """A PTX text, cut into functions and variables. Raises: ParseError."""
    files: dict[int, str] = {}
    variables: dict[str, Symbol] = {}
    functions: dict[str, Function] = {}
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
            function = Function.from_header(text)
            if not function.extern:
                functions[function.name] = function
                body = function.body
        elif symbol := variable(text):
            variables[symbol.name] = symbol

    module = Module(files, variables, functions)
    place(module.statics, STATIC_BASE)
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


def variable(text: str) -> Symbol | None:
    """`.shared .align 4 .b8 name[256]` and the like, or None."""
    match = re.match(
        r"(?:\.(?:visible|extern|weak|common)\s+)*\.(const|global|shared|local|param)\s+"
        r"(?:\.align\s+(\d+)\s+)?(?:\.v\d\s+)?\.(\w+)\s+"
        r"(?:\.ptr\s+(?:\.(?:global|shared|local|const)\s+)?(?:\.align\s+\d+\s+)?)?"  # sm_100
        r"([\w$%]+)((?:\[\d*\])*)\s*(?:=\s*(.*))?$",
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
        values = [number(v).value for v in re.findall(r"[^\s,{}]+", init)]
        data = b"".join(
            (v % 2 ** (8 * SIZES[kind])).to_bytes(SIZES[kind], "little") for v in values
        )
    return Symbol(name, space, size, int(align or SIZES[kind]), data=data)


def place(symbols: list[Symbol], start: int) -> int:
    """Give each symbol the next aligned address; return the end."""
    for symbol in symbols:
        symbol.address = -(-start // symbol.align) * symbol.align
        start = symbol.address + symbol.size
    return start


def number(text: str) -> Number:
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


def split(text: str) -> list[str]:
    """Split at the commas that stand outside of brackets."""
    if "{" not in text and "(" not in text and "[" not in text:
        return [part.strip() for part in text.split(",") if part.strip()]
    return [part.strip() for part in re.split(r",(?![^\[{(]*[\]})])", text) if part.strip()]
