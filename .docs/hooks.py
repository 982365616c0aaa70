"""What the site does to pages: formulas of docstrings are typeset, and so is TeX."""

import html
import re

import latex2mathml.converter

GREEK = "alpha|beta|mu|phi|pi|rho|sigma|theta|xi"
SYMBOL = rf"(?<![A-Za-z_])({GREEK}|grad|sum|[A-Za-z])"
SIGNS = {
    r"\^(-?\w+(?:\([^)]*\))?)": r"<sup>\1</sup>",
    rf"{SYMBOL}_([A-Za-z0-9]+(?:\+[0-9]+)?)": r"\1<sub>\2</sub>",
    rf"\b({GREEK})(?![a-z])": r"&\1;",
    r"\bgrad(?![a-z])": "&nabla;",
    r"\bsum(?![a-z])": "&sum;",
    r"\bsqrt\(": "&radic;(",
    r"&lt;-": "&larr;",
    r"-&gt;": "&rarr;",
    r"&gt;=": "&ge;",
    r"&lt;=": "&le;",
    r"&lt;(?=[a-z])(.*?)&gt;": r"&lang;\1&rang;",
    r" - ": " &minus; ",
}


def _typeset(text: str) -> str:
    """A docstring's formulas, escaped: Greek letters, indices and powers."""
    for pattern, sign in SIGNS.items():
        text = re.sub(pattern, sign, text)
    return text


def _formulas(block: re.Match) -> str:
    """An indented block of a docstring, its columns as such, unless it is a program."""
    text = block[1]
    if "&gt;&gt;&gt;" in text or "estimator." in text:
        return block[0]
    lines = (re.split(r" {2,}", line) for line in _typeset(text).splitlines())
    rows = ("".join(f"<td>{cell}</td>" for cell in line) for line in lines)
    table = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="formulas"><table class="formulas">{table}</table></div>'


def _mathml(tex: str, display: str) -> str:
    found = latex2mathml.converter.convert(html.unescape(tex).strip(), display=display)
    return f'<div class="formulas">{found}</div>' if display == "block" else found


def on_page_content(content: str, page, **_) -> str:
    """Formulas become MathML, which browsers show without a script."""
    if page.file.src_uri.startswith("notebooks/reference/"):
        plain = r'<div class="(?:language-text )?highlight"><pre>(?:<span></span>)?'
        content = re.sub(
            plain + r"<code>(.*?)</code></pre></div>", _formulas, content, flags=re.S
        )
    inline = lambda m: _mathml(m[1], "inline")
    block = lambda m: _mathml(m[1], "block")
    content = re.sub(
        r'<span class="arithmatex">\\\((.*?)\\\)</span>', inline, content, flags=re.S
    )
    content = re.sub(
        r'<div class="arithmatex">\\\[(.*?)\\\]</div>', block, content, flags=re.S
    )
    if page.file.src_uri.endswith(".ipynb"):
        # Text alone: programs and outputs have dollars of their own.
        programs = r"(<pre.*?</pre>|<code.*?</code>|<script.*?</script>)"
        parts = re.split(programs, content, flags=re.S)
        for i in range(0, len(parts), 2):
            parts[i] = re.sub(r"\$\$(.+?)\$\$", block, parts[i], flags=re.S)
            parts[i] = re.sub(r"\$([^$<>]+?)\$", inline, parts[i])
        content = "".join(parts)
    return content
