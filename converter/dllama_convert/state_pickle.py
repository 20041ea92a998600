"""Runs the pickle of a state dictionary without Python's pickle.

A pickle is a program. Python's own unpickler allocates what an operand asks for (400 bytes may ask for 4 GB) and hashes
whatever is a key. This one knows the operations that torch.save writes, makes no object that the file does not
hold, and calls nothing: `call` and `load` decide what the few named functions and storages mean."""

import struct
from collections.abc import Callable


class PickleError(Exception):
    """The pickle is damaged, or does what no state dictionary does."""


class Name(tuple):
    """(module, name) of a global."""


_MARK = object()
_MAX_OBJECTS = 10_000_000
_INTEGERS = {b"K": "<B", b"M": "<H", b"J": "<i"}
_TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
_EMPTY = {b")": tuple, b"]": list, b"}": dict}
_CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False}
# Texts and bytes by the width of their length.
_TEXTS = {b"X": "<I", b"\x8c": "<B", b"T": "<I", b"U": "<B", b"B": "<I", b"C": "<B"}
_BYTES = (b"B", b"C")


def run(program: bytes, call: Callable[[Name, tuple], object], load: Callable[[object], object]) -> object:
    """The object that the pickle makes. `call` gets a global and its arguments, `load` a persistent id. Raises
    PickleError, and what these raise."""
    return _Machine(program, call, load).run()


class _Machine:
    def __init__(self, program: bytes, call, load):
        self._program, self._call, self._load = program, call, load
        self._at = 0
        self._stack: list = []
        self._memo: dict[int, object] = {}

    def run(self) -> object:
        for _ in range(min(len(self._program), _MAX_OBJECTS)):
            code = self._take(1)
            if code == b".":
                return self._pop()
            self._step(code)
        raise PickleError("it does not end")

    def _step(self, code: bytes) -> None:
        push = self._stack.append
        if code == b"\x80":
            self._take(1)
        elif code == b"\x95":  # a frame only groups what follows
            self._take(8)
        elif code in _CONSTANTS:
            push(_CONSTANTS[code])
        elif code in _INTEGERS:
            push(self._integer(_INTEGERS[code]))
        elif code == b"\x8a":
            raw = self._take(self._integer("<B"))
            if len(raw) > 16:
                raise PickleError(f"an integer of {len(raw)} bytes")
            push(int.from_bytes(raw, "little", signed=True))
        elif code == b"G":
            push(struct.unpack(">d", self._take(8))[0])
        elif code in _TEXTS:
            raw = self._take(self._integer(_TEXTS[code]))
            push(raw if code in _BYTES else raw.decode("utf-8", "strict"))
        elif code == b"(":
            push(_MARK)
        elif code in _EMPTY:
            push(_EMPTY[code]())
        elif code == b"t":
            push(tuple(self._to_mark()))
        elif code in _TUPLES:
            self._tuple(_TUPLES[code])
        elif code == b"a":
            value = self._pop()
            self._top(list).append(value)
        elif code == b"e":
            values = self._to_mark()
            self._top(list).extend(values)
        elif code in (b"s", b"u"):
            self._set(self._to_mark() if code == b"u" else [*reversed((self._pop(), self._pop()))])
        elif code in (b"q", b"r"):
            self._memo[self._integer("<B" if code == b"q" else "<I")] = self._last()
        elif code == b"\x94":
            self._memo[len(self._memo)] = self._last()
        elif code in (b"h", b"j"):
            index = self._integer("<B" if code == b"h" else "<I")
            if index not in self._memo:
                raise PickleError(f"memo {index} is empty")
            push(self._memo[index])
        elif code == b"c":
            push(Name((self._line(), self._line())))
        elif code == b"\x93":
            name, module = self._pop(), self._pop()
            if not isinstance(name, str) or not isinstance(module, str):
                raise PickleError("a global without a name")
            push(Name((module, name)))
        elif code == b"R":
            arguments, function = self._pop(), self._pop()
            if not isinstance(function, Name) or not isinstance(arguments, tuple):
                raise PickleError("it calls what is no function")
            push(self._call(function, arguments))
        elif code == b"Q":
            push(self._load(self._pop()))
        elif code == b"b":  # attributes, such as _metadata of an OrderedDict: of no use
            self._pop()
            self._last()
        elif code == b"0":
            self._pop()
        else:
            raise PickleError(f"operation {code!r} at byte {self._at - 1} is none of a state dictionary")

    def _take(self, n: int) -> bytes:
        piece = self._program[self._at : self._at + n]
        if len(piece) < n:
            raise PickleError("it is cut off")
        self._at += n
        return piece

    def _integer(self, form: str) -> int:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        end = self._program.find(b"\n", self._at, self._at + 256)
        if end < 0:
            raise PickleError("a name without an end")
        line = self._program[self._at : end]
        self._at = end + 1
        return line.decode("utf-8", "strict")

    def _pop(self):
        value = self._last()
        self._stack.pop()
        return value

    def _last(self):
        if not self._stack or self._stack[-1] is _MARK:
            raise PickleError("its stack is empty")
        return self._stack[-1]

    def _top(self, kind: type):
        if not self._stack or type(self._stack[-1]) is not kind:
            raise PickleError(f"no {kind.__name__} to add to")
        return self._stack[-1]

    def _to_mark(self) -> list:
        for i in range(len(self._stack) - 1, -1, -1):
            if self._stack[i] is _MARK:
                values = self._stack[i + 1 :]
                del self._stack[i:]
                return values
        raise PickleError("a mark is missing")

    def _tuple(self, n: int) -> None:
        values = [self._pop() for _ in range(n)]
        self._stack.append(tuple(reversed(values)))

    def _set(self, items: list) -> None:
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):
                raise PickleError("a key that is neither text nor a number")
            target[key] = value
