"""TeX to MathML while the site is built: pages need no script and no fonts for their formulas.

`$...$` and `$$...$$` are found by the Markdown extension arithmatex, which leaves code alone.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """A page's HTML with its formulas as MathML. Raises PluginError that names page and formula."""

    def replaced(match: re.Match[str]) -> str:
        tex = html.unescape(match[2]).strip()
        block = match[1] == "div"
        try:
            formula = convert(tex, display="block" if block else "inline")
        except Exception as error:
            raise PluginError(f"{page.file.src_uri}: {tex!r} is no formula: {error!r}") from error
        formula = formula.replace("<mi>:</mi>", "<mo>:</mo>")  # a product, with an operator's space
        return f'<div class="formula">{formula}</div>' if block else formula

    return _FORMULA.sub(replaced, content)
