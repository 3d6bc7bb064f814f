"""The frame and the tables of a report's page. A page needs nothing else: the styles are inside, and no script is."""

from collections.abc import Iterable, Sequence
from html import escape

from export.reporting.style import STYLE


def page(title: str, sections: Iterable[str]) -> str:
    """The whole page's text."""
    title = escape(title)
    # The policy makes a browser refuse anything from outside, and scripts.
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, note: str, content: str) -> str:
    """A part of a page: heading, a note in small print or none, and HTML."""
    text = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{title}</h2>{text}{content}</section>"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], words: int) -> str:
    """A table whose last columns hold figures; a cell that begins with ``<th`` is put in as it is."""
    figures = len(columns) - words
    head = "".join(
        f'<th scope="col"{"" if position < words else " class=figure"}>{name}</th>'
        for position, name in enumerate(columns)
    )
    body = ""
    for row in rows:
        first = ' class="group"' if row[0].startswith("<th") else ""
        cells = [
            cell
            if cell.startswith("<th")
            else f"<td{'' if position < len(row) - figures else ' class=figure'}>{cell}</td>"
            for position, cell in enumerate(row)
        ]
        body += f"<tr{first}>{''.join(cells)}</tr>"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def capital(text: str) -> str:
    """With its first letter in upper case."""
    return text[0].upper() + text[1:]
