"""xl.cfg: the language of a domain's configuration file, without the meaning of its keys.

It is what libxlutil 4.17 reads: settings `name = value` and `name += value`, one a line or
between semicolons. Atoms are text, quoted or not: `010`, `"010"` and `'010'` are one value, which
is read as a C integer only where a key wants a number. xenpv refuses three things that libxlutil
lets pass by accident: a stray last character of the file, an octal escape (it is swallowed
there, unless it is refused), lists nested deeper than 100.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from xenpv.errors import ConfigError
from xenpv.host.position import NOWHERE, Position, shown

if TYPE_CHECKING:
    from lark import Lark, Token, Tree, UnexpectedCharacters, UnexpectedToken

FILE_BYTES_MAX = 1 << 20
NESTING_MAX = 100
COMMAND_LINE = "command line"

_LONG_MIN, _LONG_MAX = -(1 << 63), (1 << 63) - 1
_LONG = r"[ \t\n\v\f\r]*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)\Z"
_ESCAPES = {"\\": "\\", "'": "'", '"': '"', "a": "\a", "b": "\b", "f": "\f"} | {
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
}

# What the parser could have taken, most telling first: (a token it accepts, one that it does
# not, what to say).
_EXPECTED = (
    ("ASSIGN", "", "expected '=' or '+=' after '{name}'"),
    ("STRING", "RSQB", "expected a value after '{name}': a quoted string, a number or a [list]"),
    ("STRING", "", "expected a value or ']' in the list opened at {opened}"),
    ("RSQB", "", "expected ',' or ']' in the list opened at {opened}"),
    ("IDENT", "", "expected a setting, name = value"),
    ("_NEWLINE", "", "expected the end of the line after the value"),
)
_BOOLEANS = {"true", "false", "yes", "no", "on", "off"}
_PYTHON = "this looks like Python, and xl.cfg has no expressions"
_STRAY = {
    "\r": "carriage return: lines must end with a line feed alone",
    "\ufeff": "byte-order mark: the file must be plain text",
    "#": "expected a newline after the comment in the last line",
    "'": "expected a closing ' on the same line",
    '"': 'expected a closing " on the same line',
} | {char: f"unexpected {char!r}: {_PYTHON}" for char in "+-.():"}


@attrs.frozen
class Atom:
    """A string or a number, as text: escapes are resolved, bytes beyond UTF-8 are surrogates."""

    text: str
    position: Position = attrs.field(default=NOWHERE, eq=False)

    def number(self) -> int | None:
        """The text as strtol(3) reads all of it in base 0; None if it does not fit a long."""
        match = re.match(_LONG, self.text)
        if match is None:
            return None
        sign, digits = match.groups()
        if len(digits.lstrip("0")) > 22:  # 2^63 in octal; int() refuses thousands of digits
            return None
        base = 16 if digits[1:2] in {"x", "X"} else 8 if digits.startswith("0") else 10
        value = int(f"{sign}{digits}", base)
        return value if _LONG_MIN <= value <= _LONG_MAX else None


@attrs.frozen
class ValueList:
    items: tuple[Value, ...]
    position: Position = attrs.field(default=NOWHERE, eq=False)


Value = Atom | ValueList


@attrs.frozen(kw_only=True)
class Setting:
    """What one key ended up with; `position` is the name's in the assignment that was last.

    `added`: that assignment was a `+=`, after which xl reads no number from the key.
    """

    key: str
    value: Value
    added: bool = False
    position: Position = attrs.field(default=NOWHERE, eq=False)


def plain(value: Value) -> str | list[object]:
    """The value as str and nested lists of str."""
    return value.text if isinstance(value, Atom) else [plain(item) for item in value.items]


def read(path: str | Path, overrides: Sequence[str] = ()) -> Mapping[str, Setting]:
    """`parse` the file at `path`; also ConfigError if it cannot be read or exceeds 1 MiB."""
    name = str(path)
    try:
        with Path(path).open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise ConfigError(f"cannot read the configuration: {reason}", file=name) from None
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"a configuration may have {FILE_BYTES_MAX} bytes", file=name)
    return parse(data.decode("utf-8", "surrogateescape"), file=name, overrides=overrides)


def parse(text: str, file: str = "", overrides: Sequence[str] = ()) -> Mapping[str, Setting]:
    """The settings of a configuration by key, in the order of each key's first assignment.

    `overrides` are lines that follow those of the file, as in `xl create FILE name=value`; errors
    in them are placed in a file called "command line". Raises ConfigError.
    """
    source = _Source(text, file, overrides)
    settings: dict[str, Setting] = {}
    for setting in source.settings():
        old = settings.get(setting.key)
        settings[setting.key] = _added(old, setting) if old and setting.added else setting
    return settings


def _added(old: Setting, new: Setting) -> Setting:
    a, b = old.value, new.value
    joined: Value
    if isinstance(a, Atom) and isinstance(b, Atom):
        joined = Atom(a.text + b.text, b.position)
    elif isinstance(a, ValueList) and isinstance(b, ValueList):
        joined = ValueList(a.items + b.items, b.position)
    else:
        kinds = ["a string" if isinstance(value, Atom) else "a list" for value in (b, a)]
        raise new.position.error(
            f"'+=' cannot add {kinds[0]} to {new.key}, which is {kinds[1]} since {old.position}"
        )
    return attrs.evolve(new, value=joined)


def _unquoted(word: str) -> str:
    if word.lower() in _BOOLEANS:
        return ": a boolean is 0 or 1"
    return ": text must be quoted"


@functools.cache
def _grammar() -> Lark:
    from lark import Lark

    return Lark.open("xlcfg.lark", rel_to=__file__, parser="lalr", lexer="basic")


class _Source:
    """One text to parse and where its lines come from."""

    def __init__(self, text: str, file: str, overrides: Sequence[str]) -> None:
        self._file = file
        # The first line of the overrides; none without them.
        self._command_line = text.count("\n") + 2 if overrides else 0
        self._text = "\n".join([text, *overrides, ""]) if overrides else text

    def settings(self) -> Iterator[Setting]:
        from lark import UnexpectedCharacters, UnexpectedToken

        if (nul := self._text.find("\0")) >= 0:
            raise self._offset(nul).error("NUL byte: the file must be plain text")
        try:
            tree = _grammar().parse(self._text)
        except UnexpectedCharacters as error:
            raise self._stray(error) from None
        except UnexpectedToken as error:
            raise self._unexpected(error) from None
        for setting in tree.children:
            key, operator, value = setting.children  # type: ignore[union-attr] # only settings stay
            yield Setting(
                key=str(key),
                value=self._value(value, 0),
                added=operator == "+=",
                position=self._position(key),  # type: ignore[arg-type] # a terminal
            )

    def _value(self, node: Token | Tree[Token], depth: int) -> Value:
        from lark import Token

        if isinstance(node, Token):
            text = self._dequoted(node) if node.type == "STRING" else str(node)
            return Atom(text, self._position(node))
        opening, *items, _ = node.children
        position = self._position(opening)  # type: ignore[arg-type] # the grammar's LSQB
        if depth == NESTING_MAX:
            raise position.error(f"lists may be nested {NESTING_MAX} deep")
        return ValueList(tuple(self._value(item, depth + 1) for item in items), position)

    def _dequoted(self, token: Token) -> str:
        if "\\" not in token:
            return str(token[1:-1])

        def resolved(match: re.Match[str]) -> str:
            char = match[1]
            if char in _ESCAPES:
                return _ESCAPES[char]
            position = self._position(token)
            position = attrs.evolve(position, column=position.column + 1 + match.start())
            known = " ".join(f"\\{name}" for name in _ESCAPES)
            raise position.error(f"unknown escape \\{shown(char)} in a string: expected {known}")

        return re.sub(r"\\(.)", resolved, token[1:-1])

    def _stray(self, error: UnexpectedCharacters) -> ConfigError:
        offset: int = error.pos_in_stream  # type: ignore[assignment] # lark declares it None
        place, char = self._offset(offset), self._text[offset]
        if char in _STRAY:
            return place.error(_STRAY[char])
        word = re.compile(r"\w+").match(self._text, offset)
        if word is None:
            return place.error(f"unexpected character {shown(char)}")
        before = error.token_history
        if before and before[-1].type not in {"_NEWLINE", "_SEMICOLON"}:
            return place.error(f"unexpected word '{shown(word[0])}'{_unquoted(word[0])}")
        return place.error(
            f"unexpected word '{shown(word[0])}': expected the name of a setting, which "
            "begins with a lower-case letter and has lower-case letters, digits, '.' and '_'"
        )

    def _unexpected(self, error: UnexpectedToken) -> ConfigError:
        token, accepts = error.token, error.accepts
        stack = error.interactive_parser.parser_state.value_stack
        opened = ""
        if "RSQB" in accepts:
            opening = [item for item in stack if getattr(item, "type", "") == "LSQB"][-1]
            opened = f"{opening.line}:{opening.column}"
            if self._position(opening).file == COMMAND_LINE:
                opened = "the command line"
        message = next(
            text for yes, no, text in _EXPECTED if yes in accepts and no not in accepts
        ).format(name=stack[-1] if stack else "", opened=opened)
        if token.type == "$END":
            return self._offset(len(self._text)).error(f"{message}, found the end of the file")
        found = {"_NEWLINE": "the end of the line", "STRING": "a string"}.get(token.type)
        found = found or f"'{shown(str(token))}'"
        hint = ""
        if token.type == "IDENT" and "STRING" in accepts:
            hint = _unquoted(token)
        elif token.type in {"IDENT", "STRING", "NUMBER"} and "_SEMICOLON" in accepts:
            hint = ": one setting a line, or ';' between them"
        return self._position(token).error(f"{message}, found {found}{hint}")

    def _offset(self, offset: int) -> Position:
        line = self._text.count("\n", 0, offset) + 1
        return self._place(line, offset - self._text.rfind("\n", 0, offset))

    def _position(self, token: Token) -> Position:
        assert token.line is not None
        assert token.column is not None
        return self._place(token.line, token.column)

    def _place(self, line: int, column: int) -> Position:
        if self._command_line and line >= self._command_line:
            return Position(COMMAND_LINE, line - self._command_line + 1, column)
        return Position(self._file, line, column)
