"""The directives of the protocol reference, each a table, a picture or both.

An argument that the code does not know fails the build and names what it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

from . import chains, charts, diagrams, keys, observed, rings, slots, states, structs, traces, words
from .structs import SUFFIX_32
from .svg import Picture, PictureError
from .table import Table, inline, to_node
from .texts import UnknownError, fields, sections


def show(picture: Picture) -> nodes.Node:
    """A picture in a box of its own that scrolls where the page is too narrow."""
    return nodes.raw("", f'<div class="xp-scroll">{picture.render()}</div>', format="html")


def show_row(pictures: Iterable[tuple[str, Picture]]) -> nodes.Node:
    """Pictures side by side, below each other where the page is narrow."""
    figures = "".join(
        f"<figure><figcaption>{caption}</figcaption>{picture.render()}</figure>"
        for caption, picture in pictures
    )
    return nodes.raw("", f'<div class="xp-row">{figures}</div>', format="html")


def say(text: str) -> nodes.Node:
    paragraph = nodes.paragraph()
    paragraph += inline(text)
    return paragraph


class Generated(SphinxDirective):
    """One argument, what it makes is `make`."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        try:
            return list(self.make(self.arguments[0]))
        except (UnknownError, PictureError) as error:
            raise self.error(f"{self.name}: {error}") from error

    def make(self, name: str) -> Iterable[nodes.Node]:
        raise NotImplementedError


class Struct(Generated):
    """`{struct} netif_tx_request`: its picture, with that of a 32-bit guest, and its fields.

    `:only:` members of its union that are drawn; `:bare:` no picture.
    """

    option_spec: ClassVar[dict[str, Callable[[str], Any]]] = {
        "only": directives.unchanged,
        "bare": directives.flag,
    }

    def make(self, name: str) -> Iterable[nodes.Node]:
        found = structs.variants(name)
        yield say(f"`{name}`: {structs.size_line(name)}. {fields(name)['_']}")
        only = self.options.get("only", "").split()
        known = [one.name for one in found]
        for one in only:
            if one not in known:
                raise UnknownError(f"member of {name}", one, known)
        pictures = [
            (caption or ("64-bit" if structs.has_32(name) else name), slots.draw(name, variant))
            for variant in found
            for caption in (variant.name,)
            if not only or variant.name in only
        ]
        if structs.has_32(name):
            narrow = name + SUFFIX_32
            pictures += [
                (f"32-bit x86 {one.name}".strip(), slots.draw(narrow, one))
                for one in structs.variants(narrow)
            ]
        if "bare" not in self.options:
            yield show_row(pictures)
        yield to_node(structs.describe(name))


class Ring(Generated):
    """`{ring} blkif`: the page, the header's words, slots by page order."""

    def make(self, name: str) -> Iterable[nodes.Node]:
        yield show(rings.draw(name))
        yield to_node(rings.words(name))
        yield to_node(rings.sizes(name))


class Enum(Generated):
    """`{enum} NETIF_RSP_`: every constant of that prefix. `:without:` prefixes left out."""

    option_spec: ClassVar[dict[str, Callable[[str], Any]]] = {"without": directives.unchanged}

    def make(self, name: str) -> Iterable[nodes.Node]:
        without = tuple(self.options.get("without", "").split())
        found = structs.constants(name, without=without)
        yield to_node(self.table(found))

    def table(self, found: list[tuple[str, int]]) -> Table:
        return structs.describe_constants(found, sections()["constant"])


class Value(Generated):
    """`{values} A B C`: single constants."""

    def make(self, name: str) -> Iterable[nodes.Node]:
        found = [(one, structs.value_of(one)) for one in name.split()]
        yield to_node(structs.describe_constants(found, sections()["constant"]))


class States(Generated):
    """`{states} vif-frontend`: the diagram and the table of one end."""

    def make(self, name: str) -> Iterable[nodes.Node]:
        states.check(name)
        if name in states.FRONTENDS:
            frontend = states.FRONTENDS[name]()
            order = ", ".join(goal.value for goal in states.START[name])
            yield say(f"It walks {order}.")
            yield show_row(
                (title, diagrams.draw_goal(frontend, number))
                for number, (title, _) in enumerate(frontend.columns)
            )
            yield to_node(states.frontend_table(frontend))
        else:
            backend = states.backends()[name]
            yield show(diagrams.draw_backend(backend))
            yield to_node(states.backend_table(backend))


class StateMeanings(Generated):
    """`{xenbus-states} all`: what each state means at either end."""

    def make(self, name: str) -> Iterable[nodes.Node]:
        if name != "all":
            raise UnknownError("choice of states", name, ["all"])
        yield to_node(states.meanings())


class Flags(Generated):
    """`{flags} NETTXF_`: the bits of a word and what they mean."""

    def make(self, name: str) -> Iterable[nodes.Node]:
        picture, table = words.flags(name)
        yield show(picture)
        yield to_node(table)


class Word(Generated):
    """`{word} event-word`: a picture of its bits."""

    def make(self, name: str) -> Iterable[nodes.Node]:
        yield show(words.picture(name))


class Chain(Generated):
    """`{chain} tx`: slots of one packet or request, and their answers."""

    def make(self, name: str) -> Iterable[nodes.Node]:
        yield show(chains.picture(name))


class Observed(Generated):
    """`{observed} rss`: a table of observed.py; `{errors}` and `{opcodes}` likewise."""

    tables = observed.OBSERVED

    def make(self, name: str) -> Iterable[nodes.Node]:
        yield to_node(observed.table(f"table of {self.name}", self.tables, name))


class Errors(Observed):
    """`{errors} netback-tx`: what is answered to what is wrong."""

    tables = observed.ERRORS


class Opcodes(Observed):
    """`{opcodes} xs_wire`: numbers, names, arguments."""

    tables = observed.OPCODES


class Keys(Generated):
    """`{keys} netback`: keys that one end writes, who reads them; `{keys} home`: a new domain's."""

    def make(self, name: str) -> Iterable[nodes.Node]:
        yield to_node(keys.home_table() if name == "home" else keys.compact(keys.table(name)))


class Handshake(Generated):
    """`{handshake} vif windows linux`: charts of real runs: device, frontend, backends."""

    def make(self, name: str) -> Iterable[nodes.Node]:
        kind, frontend, *backends = [*name.split(), "", ""]
        wanted = [one for one in backends if one] or [""]
        for backend in wanted:
            traces.check(kind, frontend, backend)
        runs = [traces.run(kind, frontend, backend) for backend in wanted]
        for run in runs:
            assert run.connected, run
        yield show_row((f"{run.backend}", charts.draw(run)) for run in runs)


DIRECTIVES = {
    "struct": Struct,
    "ring": Ring,
    "enum": Enum,
    "values": Value,
    "states": States,
    "flags": Flags,
    "word": Word,
    "chain": Chain,
    "errors": Errors,
    "opcodes": Opcodes,
    "observed": Observed,
    "handshake": Handshake,
    "keys": Keys,
    "xenbus-states": StateMeanings,
}
