"""Formulas as MathML, which browsers show by themselves: no script, no font, no other host."""

import html
import re

SPAN = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', flags=re.DOTALL)


def shown(page: str) -> str:
    """HTML with the LaTeX in it turned into MathML.

    Example:
        >>> shown('<span class="arithmatex">\\\\(x^2\\\\)</span>')[:27]
        '<span class="formula"><math'
    """
    from latex2mathml.converter import convert

    def formula(match: re.Match[str]) -> str:
        tag, kind, latex = match.groups()
        display = "block" if kind == "[" else "inline"
        spelled = convert(html.unescape(latex).strip(), display=display)
        return f'<{tag} class="formula">{spelled}</{tag}>'

    return SPAN.sub(formula, page)
