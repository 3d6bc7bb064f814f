"""The report's page."""

import pytest
from support.html_page import Page
from support.verified import PROMPTS

from export.verify.report_files import HTML


@pytest.fixture(scope="module")
def page(verified):
    return (verified[1] / HTML).read_text(encoding="utf-8")


def test_page_needs_nothing_from_outside(page):
    parsed = Page(page)
    assert not {"script", "link", "iframe", "object", "embed", "base", "a", "use", "image"} & {
        t for t, _ in parsed.tags
    }
    for tag, attributes in parsed.tags:
        assert not {"href", "xlink:href", "srcset", "onload", "onclick", "onerror"} & attributes.keys()
        assert "src" not in attributes or (tag == "img" and attributes["src"].startswith("data:image/png;base64,"))
    assert "url(" not in page and "@import" not in page and "http://" not in page and "https://" not in page


def test_page_shows_all_pictures(verified, page):
    """Of each prompt: two references (two types of time), their difference, two bundles and their differences."""
    images = Page(page).named("img")
    assert len(images) == 2 * 7 and all(i["alt"] and i["width"] == i["height"] == "128" for i in images)
    assert sum("difference × " in i["alt"] for i in images) == 2 * 3


def test_page_says_it_in_words(verified, page):
    text = Page(page).text
    assert all(stage in text for stage in ("text_encoder", "dit_cond", "dit_uncond", "vae_decoder"))
    assert (
        "a schedule of its own" in text
        and "5 to 6" in text
        and "weights + activations (a scale for each token)" in text
    )
    assert PROMPTS[1] in text and "relative velocity error" in text and "none" in text
    assert page.count('class="line"') == 2 * 4  # four lines, and the four of the legend
