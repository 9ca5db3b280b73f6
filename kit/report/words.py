"""Words of files as plain text: what would move a cursor, hide or turn round is shown, and does nothing.

plain("a\\x1b[2Jb")              # 'a\\\\x1b[2Jb'
in_json('["a\\u202eb"]')         # '["a\\\\u202eb"]', still the same JSON
"""

from __future__ import annotations

import json
import unicodedata

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co"})  # control characters, formatting, halves of pairs, private use


def plain(text: str, *, lines: bool = False) -> str:
    r"""Return text whose invisible characters are spelled out, such as `\x1b`; with `lines` line ends and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    kept = {"\n", "\t"} if lines else set[str]()
    return "".join(
        character.encode("unicode_escape").decode() if _is_hidden(character) and character not in kept else character
        for character in text
    )


def in_json(text: str) -> str:
    """Return JSON with the same values, in which invisible characters are escaped; only strings can hold them."""
    return "".join(
        json.dumps(character)[1:-1] if _is_hidden(character) and character not in "\n\t" else character
        for character in text
    )


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in _HIDDEN
