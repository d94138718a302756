"""What a page is made of; each part can show itself as HTML and as Markdown. All text is escaped here and only here."""

import base64
import html
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


class Part(ABC):
    """A piece of a page."""

    @abstractmethod
    def html(self) -> str:
        """As HTML."""

    def markdown(self) -> str:
        """As Markdown; empty where a terminal has nothing to show."""
        return ""


@dataclass(frozen=True)
class Text(Part):
    """A paragraph."""

    text: str

    def html(self) -> str:
        return f"<p>{html.escape(self.text)}</p>"

    def markdown(self) -> str:
        return _markdown(self.text)


@dataclass(frozen=True)
class Bullets(Part):
    """A list of sentences, each after a word in bold."""

    items: Sequence[tuple[str, str]]

    def html(self) -> str:
        items = (f"<li><strong>{html.escape(word)}</strong> {html.escape(text)}</li>" for word, text in self.items)
        return f"<ul>{''.join(items)}</ul>"

    def markdown(self) -> str:
        return "\n".join(f"- **{_markdown(word)}** {_markdown(text)}" for word, text in self.items)


@dataclass(frozen=True)
class Table(Part):
    """Rows of text under a header; all but the first column are numbers, unless ``prose``."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    prose: bool = False

    def html(self) -> str:
        head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in self.header)
        rows = (
            f'<tr><th scope="row">{html.escape(first)}</th>'
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in rest)
            + "</tr>"
            for first, *rest in self.rows
        )
        kind = "prose" if self.prose else "numbers"
        table = f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        return f'<div class="scroll" tabindex="0">{table}</div>'

    def markdown(self) -> str:
        rule = ["---", *("---" if self.prose else "---:" for _ in self.header[1:])]
        lines = [list(map(_markdown, self.header)), rule, *(list(map(_markdown, row)) for row in self.rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True)
class Drawing(Part):
    """An SVG element, drawn when it is needed, whose text is escaped already."""

    draw: Callable[[], str]
    caption: str

    def html(self) -> str:
        return _figure(self.draw(), self.caption, "drawn")


@dataclass(frozen=True)
class Picture(Part):
    """A PNG file, held in the page itself."""

    png: bytes
    caption: str

    def html(self) -> str:
        data = base64.b64encode(self.png).decode()
        image = f'<img alt="{html.escape(self.caption)}" src="data:image/png;base64,{data}">'
        return _figure(image, self.caption, "picture")


@dataclass(frozen=True)
class Gallery(Part):
    """Parts side by side, as many as the screen has room for."""

    parts: Sequence[Part]

    def html(self) -> str:
        return f'<div class="gallery">{"".join(part.html() for part in self.parts)}</div>'

    def markdown(self) -> str:
        return "\n\n".join(text for part in self.parts if (text := part.markdown()))


@dataclass(frozen=True)
class Key(Part):
    """Which colour is which run."""

    colours: Sequence[tuple[str, str]]

    def html(self) -> str:
        items = (
            f'<li><span style="background:{html.escape(colour)}"></span>{html.escape(name)}</li>'
            for colour, name in self.colours
        )
        return f'<ul class="key">{"".join(items)}</ul>'


@dataclass(frozen=True)
class Listing(Part):
    """A file as it is; too long for a terminal."""

    text: str

    def html(self) -> str:
        return f'<pre tabindex="0">{html.escape(self.text)}</pre>'


@dataclass(frozen=True)
class Folded(Part):
    """A part behind a word that opens it."""

    word: str
    part: Part

    def html(self) -> str:
        return f"<details><summary>{html.escape(self.word)}</summary>{self.part.html()}</details>"

    def markdown(self) -> str:
        return self.part.markdown()


@dataclass(frozen=True)
class Section:
    """Parts under a title; ``level`` 1 is the page's own."""

    title: str
    level: int
    parts: Sequence[Part] = field(default_factory=tuple)

    def html(self) -> str:
        """As HTML."""
        heading = f"<h{self.level}>{html.escape(self.title)}</h{self.level}>"
        return "\n".join([heading, *(part.html() for part in self.parts)])

    def markdown(self) -> str:
        """As Markdown; empty if there is nothing below the title that a terminal shows."""
        shown = [text for part in self.parts if (text := part.markdown())]
        title = f"{'#' * self.level} {_markdown(self.title)}"
        return "\n\n".join([title, *shown]) if shown or self.level == 1 else ""


def _figure(content: str, caption: str, kind: str) -> str:
    return f'<figure class="{kind}">{content}<figcaption>{html.escape(caption)}</figcaption></figure>'


def _markdown(text: str) -> str:
    """Text that neither breaks a table nor becomes HTML."""
    text = " ".join(text.split())
    for special in "\\|<`*[":
        text = text.replace(special, f"\\{special}")
    return text
