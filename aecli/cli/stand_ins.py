"""ASCII in place of characters that a terminal's encoding doesn't have."""

from collections.abc import Mapping

# Those of results, help and messages. Blocks of a sparkline have one character each, so that lines keep their length.
_STAND_INS = {
    "×": "x", "·": "*", "½": "1/2", "²": "^2", "³": "^3", "ᵀ": "^T", "₁": "_1", "₂": "_2", "⁻": "^-",
    "→": "->", "↑": "^", "↓": "v", "–": "-", "−": "-", "…": "...", "∞": "inf", "∘": "o", "≤": "<=", "≥": ">=",
    "±": "+-", "β": "beta", "ε": "epsilon", "μ": "mu", "µ": "mu", "σ": "sigma", "Σ": "Sigma",
    **dict(zip("▁▂▃▄▅▆▇█", "_.-~=+*#", strict=True)),
}  # fmt: skip


def has(encoding: str | None, char: str) -> bool:
    """Return whether `encoding` can show `char`; UTF-8 where it isn't known."""
    try:
        char.encode(encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def stand_ins(encoding: str | None) -> Mapping[int, str]:
    """Return the characters that `encoding` lacks, with what is written instead, as `str.translate` takes them."""
    return str.maketrans({char: ascii for char, ascii in _STAND_INS.items() if not has(encoding, char)})
