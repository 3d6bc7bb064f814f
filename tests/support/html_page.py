"""An HTML page taken apart."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags of a page; fails on one that is closed wrongly."""

    VOID = frozenset({"meta", "img", "circle", "line", "path"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]
