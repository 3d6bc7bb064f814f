"""Captions for the tests."""

from hypothesis import strategies as st

from runtime.prompt.caption import Caption, Element, Style

colours = st.from_regex(r"\A#[0-9A-F]{6}\Z")
edges = st.lists(st.integers(0, 1000), min_size=2, max_size=2).map(sorted)
boxes = st.tuples(edges, edges).map(lambda both: (both[0][0], both[1][0], both[0][1], both[1][1]))


def maybe(strategy):
    return st.none() | strategy


def palettes(limit):
    return maybe(st.lists(colours, max_size=limit).map(tuple))


styles = st.one_of(
    st.builds(Style, st.text(), st.text(), st.text(), photo=st.text(), color_palette=palettes(16)),
    st.builds(Style, st.text(), st.text(), st.text(), art_style=st.text(), color_palette=palettes(16)),
)
elements = st.one_of(
    st.builds(Element, st.just("obj"), st.text(), bbox=maybe(boxes), color_palette=palettes(5)),
    st.builds(Element, st.just("text"), st.text(), text=st.text(), bbox=maybe(boxes), color_palette=palettes(5)),
)
captions = st.builds(Caption, st.text(), st.lists(elements, max_size=6).map(tuple), maybe(styles), maybe(st.text()))

POSTER = Caption(
    "cream paper",
    (
        Element("text", "huge red capitals", text="ALPS", bbox=(100, 100, 300, 900), color_palette=("#C8553D",)),
        Element("obj", "mountains at sunrise", bbox=(400, 0, 1000, 1000)),
        Element("obj", "tiny birds"),
    ),
    Style("retro", "flat", "illustration", art_style="screen print", color_palette=("#FFFFFF", "#2D6A6A")),
    "a travel poster",
)
POSTER_LINE = (
    '{"high_level_description":"a travel poster","style_description":{"aesthetics":"retro","lighting":"flat",'
    '"medium":"illustration","art_style":"screen print","color_palette":["#FFFFFF","#2D6A6A"]},'
    '"compositional_deconstruction":{"background":"cream paper","elements":[{"type":"text","bbox":[100,100,300,900],'
    '"text":"ALPS","desc":"huge red capitals","color_palette":["#C8553D"]},'
    '{"type":"obj","bbox":[400,0,1000,1000],"desc":"mountains at sunrise"},{"type":"obj","desc":"tiny birds"}]}}'
)
