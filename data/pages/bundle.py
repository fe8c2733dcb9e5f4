"""Join styles, scripts, markup and data of assets/ into one HTML file that opens from disk.

Everything is inside the file, since a page that was opened from disk may neither fetch nor import. A content
security policy names the hashes of its own style and script and forbids all else: the page cannot reach a
network, and a string of the data that got past escaping would still not run. Data lies in a JSON block.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..atomic import write_text
from ..errors import ConfigError

ASSETS = Path(__file__).with_name("assets")

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<noscript>This page needs JavaScript; it is all inside this file.</noscript>
{body}
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def bundle(
    title: str,
    *,
    styles: Sequence[str],
    scripts: Sequence[str],
    body: str,
    words: Mapping[str, str],
    data: Mapping[str, Any],
) -> str:
    """One HTML page.

    Args:
        styles, scripts: files of assets/, in order; scripts share one scope that nothing outside sees.
        body: file of assets/ with `{{name}}` where a text of `words` goes, escaped.
        data: plain JSON values for `DATA` of the scripts.
    """
    style = "\n".join(_asset(name) for name in styles)
    code = "\n".join(_asset(name) for name in scripts)
    script = f'"use strict";\n(() => {{\n{code}\n}})();\n'
    markup = _asset(body)
    for name, text in words.items():
        markup = markup.replace("{{" + name + "}}", escape(text))
    policy = (
        f"default-src 'none'; img-src 'self' file: data:; style-src {_hash(style)}; "
        f"script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )
    return _PAGE.format(
        policy=policy, title=escape(title), style=style, body=markup, data=to_json(data), script=script
    )


def write_page(folder: Path, html: str) -> Path:
    """Write `index.html` into `folder`, atomically; returns its path.

    Raises:
        ConfigError: the folder cannot be made or written.
    """
    path = Path(folder) / "index.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, html)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error
    return path


def to_json(data: Any) -> str:
    """Compact JSON that may stand inside a script element: no `<`, so neither `</script` nor `<!--`."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def escape(text: str) -> str:
    """Text for HTML."""
    for letter, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(letter, entity)
    return text


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
