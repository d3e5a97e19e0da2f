"""Turns a function of a PTX text into a Kernel: a flat list of instructions.

Calls of device functions are inlined: a register, label or .local variable of the callee becomes
one of the caller's, its parameters become .local variables. So a machine needs no call stack.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import copy
from typing import Any

from .parser import Function, Module, number, place, split, variable
from .ptx import SIZES, Address, Kernel, Label, Op, Operand, Param, ParseError, Reg, Special, Symbol

# Opcodes whose first operand is not a result.
NO_RESULT = {"st", "red", "bra", "brx", "ret", "exit", "bar", "barrier", "membar", "fence", "cp",
             "trap", "prefetch", "prefetchu", "nanosleep", "call", "discard", "brkpt"}  # fmt: skip

SPECIAL = re.compile(
    r"%(n?tid\b|n?ctaid\b|laneid|n?warpid|lanemask|clock|globaltimer|n?smid|pm\d|"
    r"dynamic_smem_size|total_smem_size|gridid|envreg)"
)


def kernel(module: Module, name: str) -> Kernel:
    """That kernel of a module, with all that it calls. Raises: ParseError."""
    return _Emitter(module.functions[name], module.functions, module.variables).kernel


class _Emitter:
    """Turns one entry function, with all that it calls, into a Kernel."""

    def __init__(
        self, entry: Function, functions: dict[str, Function], variables: dict[str, Symbol]
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
        for param, loaded in zip(self.kernel.params, self._loaded_types(), strict=True):
            param.type = loaded or param.type
        self.kernel.shared_static = place(self.shared, 0)
        end = place(self.dynamic, -(-self.kernel.shared_static // 16) * 16)
        if self.dynamic:
            self.kernel.shared_static = end
        self.kernel.shared = self.shared + self.dynamic
        self.kernel.local_bytes = place(self.local, 0)

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

    def _emit_body(self, function: Function, names: dict[str, Any], prefix: str) -> None:
        if function.name in self.calls:
            raise ParseError(
                f"{function.name} calls itself: sim inlines calls and takes no recursion"
            )
        self.calls.append(function.name)
        outer, self.scopes = self.scopes, [self.scopes[0], names, {}]
        end = f"{prefix}$end"
        for position, text in enumerate(function.body):
            if text == "{":
                self.scopes.append(self._labels_within(function.body, position, prefix))
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
            names = split(text.removeprefix(".branchtargets"))
            self.kernel.tables[self.last_label] = [self._label(name, prefix) for name in names]
        elif symbol := variable(text):
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
        for name in split(names):
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
        guarding = (self._find(guard), bool(negated)) if guard else None
        if name == "call":
            self._call(rest, guarding, f"{prefix}$after{len(self.kernel.ops)}")
            return
        operands = (
            [self._operand(part) for part in split(rest)] if name not in ("bra", "brx") else []
        )
        if name == "bra":
            operands = [Label(self._label(rest.strip(), prefix))]
        if name == "brx":
            index, table = split(rest)
            operands = [self._operand(index), Label(self._label(table, prefix))]
        if name == "ret" and len(self.calls) > 1:
            name, mods, operands = "bra", ["uni"], [Label(end)]
        dests: tuple[Operand, ...] = ()
        if (name not in NO_RESULT or "red" in mods) and operands:
            first = operands.pop(0)
            dests = first if isinstance(first, tuple) and type(first) is tuple else (first,)
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

    def _call(self, text: str, guard: tuple[Reg, bool] | None, after: str) -> None:
        """Inline `(results), function, (arguments)`: the callee's .param names become ours."""
        if guard:
            around = (guard[0], not guard[1])
            self._append(Op(0, "bra", (), (), (Label(after),), around, *self.loc, f"call {text}"))
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
        results, arguments = ([self._find(n) for n in split(g or "")] for g in (match[1], match[3]))
        names: dict[str, Any] = {}
        for ours, theirs in zip(
            results + arguments, function.results + function.params, strict=True
        ):
            names[theirs.name] = ours
        self.inlined += 1
        loc = self.loc
        self._emit_body(function, names, prefix=f"{name}#{self.inlined}:")
        self.loc = loc
        self.kernel.labels[after] = len(self.kernel.ops)

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
            return tuple(self._operand(part) for part in split(text[1:-1]))
        if head == "!":
            return ("!", self._operand(text[1:]))
        if text == "_":
            return None
        if head.isdigit() or head == "-":
            return number(text)
        if "|" in text:
            return tuple(self._operand(part) for part in text.split("|"))
        return self._find(text)
