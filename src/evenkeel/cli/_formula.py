"""TeX as one would type it, for terminals."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["plain_formula"]


def plain_formula(source: str, *, unicode: bool = True) -> str:
    r"""Write TeX as one would type it, as far as that is simple.

    Args:
        source: a formula; commands that are not known, and what is no formula, stay as they are.
        unicode: whether other letters can be shown than those of ASCII.

    Returns:
        The formula.

    Example:
        >>> plain_formula(r"\delta_c \leftarrow \frac{\lambda}{\lVert g_c \rVert + 10^{-6}}")
        'δ_c ← λ / (‖g_c‖ + 10⁻⁶)'
        >>> plain_formula(r"\frac{1}{2} \hat g^{1/p} \unknown{x}", unicode=False)
        '(1/2) hat(g)^(1/p) \\unknown{x}'
    """
    try:
        text = _Formula(source.strip(), unicode).read()
    except (ValueError, RecursionError):
        return source
    text = re.sub(r"(?<=[(\[{]) +| +(?=[)\]},;])|,(?= *,)", "", re.sub(r" {2,}", " ", text))
    text = re.sub(r"[ \u2003]*\u2003[ \u2003]*", "   ", text)
    return "\n".join(line.strip() for line in text.splitlines())


def _table(rows: str) -> dict[str, tuple[str, str]]:
    """Read rows of TeX's name, the letter, and what stands for it in ASCII."""
    return {name: (letter, plain) for name, letter, plain in (row.split() for row in rows.split(","))}


_OPERATORS = _table(
    "leftarrow ← <-, gets ← <-, rightarrow → ->, to → ->, mapsto ↦ ->, cdot · *, times \u00d7 *, odot ⊙ *, pm ± +-,"
    "otimes ⊗ (x), circ ∘ o, le ≤ <=, leq ≤ <=, ge ≥ >=, geq ≥ >=, ne ≠ !=, neq ≠ !=, ll ≪ <<, gg ≫ >>, approx ≈ ~=,"
    "sim ~ ~, propto ∝ ~, equiv ≡ ==, in ∈ in, notin ∉ not-in, mid | |, cup \u222a or, cap ∩ and"
)
_LETTERS = _table(
    "infty ∞ inf, partial ∂ d, nabla ∇ grad, sum Σ sum, prod Π prod, ell \u2113 l, prime \u2032 ', top T T, dots … ...,"
    "ldots … ..., cdots … ..., forall ∀ all, exists ∃ some, Vert ‖ ||, | ‖ ||, vert | |"
)
_OPENING = _table("lVert ‖ ||, lvert | |, lceil ⌈ ceil(, lfloor ⌊ floor(")
_CLOSING = _table("rVert ‖ ||, rvert | |, rceil ⌉ ), rfloor ⌋ )")
_ACCENTS = {"hat": "\u0302", "widehat": "\u0302", "tilde": "\u0303", "bar": "\u0304", "dot": "\u0307", "vec": "\u20d7"}
_SPACES = {",": " ", ";": " ", ":": " ", " ": " ", "\n": " ", "!": "", "\\": "\n", "quad": "\u2003", "qquad": "\u2003"}
_WORD = re.compile(r"arg(?:min|max)?|min|max|log|ln|exp|cos|sin|tanh|sign|inf|sup")
_FONT = re.compile(r"text(?:bf|it|tt)?|math(?:rm|bf|it|bb|cal|sf)|boldsymbol|operatorname")
_SILENT = re.compile(r"left|right|[bB]igg?[lr]?|(?:no)?limits|(?:display|text)style")
_RAISED = str.maketrans("0123456789+-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻")
_LOWERED = str.maketrans("0123456789+-", "₀₁₂₃₄₅₆₇₈₉₊₋")
_SCRIPTS = r"(?:[_^][-+]?(?:\w+|\(\))|[⁺⁻]?[⁰¹²³⁴-⁹₀-₉]+)*"
_ONE = re.compile(rf"√?(?:[\w.\u0300-\u036f]+|(?:[A-Za-z]{{2,}})?\(\)){_SCRIPTS}")
_PRODUCT = re.compile(rf"-?(?:[\w\s.√()·*\u0300-\u036f]|{_SCRIPTS[:-1]})*")


class _Formula:
    """Reads TeX from left to right, and refuses by a ``ValueError`` what is no formula."""

    def __init__(self, source: str, unicode: bool) -> None:
        self._signs = re.findall(r"\\[A-Za-z]+|\s+|\\?.", source, re.DOTALL)
        self._at = 0
        self._plain = not unicode
        self._cases = False

    def read(self, end: str = "") -> str:
        """Read up to the sign ``end``; the empty one is the end of the source."""
        text, last = "", ""
        while (sign := self._take()) != end:
            piece = self._piece(sign)
            if sign in (r"\frac", r"\tfrac", r"\dfrac") and (text.rstrip()[-1:] == "/" or self._multiplies()):
                piece = f"({piece})"
            text = text.rstrip() if sign[1:] in _CLOSING else text
            word = re.search(r"[A-Za-z]{2}$", last) or re.match(r"[A-Za-z]{2}", piece)
            apart = word and (text[-1:].isalnum() or text[-1:] == ")") and piece[:1].isalnum()
            text += f" {piece}" if apart else piece
            last = piece or last
        return text

    def _peek(self) -> str:
        return self._signs[self._at] if self._at < len(self._signs) else ""

    def _take(self) -> str:
        sign = self._peek()
        self._at += 1
        return sign

    def _argument(self) -> str:
        self._skip()
        return " ".join(self._piece(self._take()).split())

    def _skip(self) -> None:
        while self._peek().isspace():
            self._take()

    def _piece(self, sign: str) -> str:
        if sign in ("", "}"):
            raise ValueError("a brace too many, or too few")
        if sign == "{":
            return self.read("}")
        if sign in ("^", "_"):
            return self._script(sign)
        if len(sign) > 1 and sign[0] == "\\":
            return self._command(sign[1:])
        if sign.isspace():
            return "\n" if "\n" in sign and not self._cases else " "
        if sign == "&" and self._cases:
            return ", "
        return " " if sign in ("&", "~") else sign

    def _command(self, name: str) -> str:
        if name in _OPERATORS:
            return f" {_OPERATORS[name][self._plain]} "
        if letter := _letter(name):
            if name in _OPENING:
                self._skip()
            return letter[self._plain]
        if name in _SPACES:
            return "; " if self._cases and name == "\\" else _SPACES[name]
        if name in ("frac", "tfrac", "dfrac"):
            return self._fraction()
        if name in _ACCENTS or name == "sqrt":
            return self._over(name)
        if name in ("begin", "end"):
            return self._environment(name)
        if _FONT.fullmatch(name):
            return self._piece(self._take())
        if _SILENT.fullmatch(name):
            return self._take()[1:] if name in ("left", "right") and self._peek() == "." else ""
        return self._unknown(name) if name.isalpha() else name

    def _environment(self, name: str) -> str:
        """Begin or end one: cases stand in one line and in braces, of others only the lines are kept."""
        if self._argument() != "cases":
            return ""
        self._cases = name == "begin"
        return "{" if self._cases else "}"

    def _unknown(self, name: str) -> str:
        text = f"\\{name}"
        while self._peek() == "{":
            text += "{" + self._piece(self._take()) + "}"
        return text

    def _over(self, name: str) -> str:
        """Read what stands under a root or an accent."""
        text = self._argument()
        if name == "sqrt" and not self._plain:
            return f"√{text}" if re.fullmatch(r"(?:[^\W\d]|\d+)[₀-₉]*(?:_\w+)?", text) else f"√({text})"
        if self._plain or len(text) != 1:
            return f"{name}({text})"
        return unicodedata.normalize("NFC", text + _ACCENTS[name])

    def _script(self, mark: str) -> str:
        text = self._argument()
        if text in ("'", "\u2032"):
            return text
        if not self._plain and re.fullmatch(r"[-+]?[0-9]+", text):
            return text.translate(_RAISED if mark == "^" else _LOWERED)
        return mark + (text if re.fullmatch(r"[-+]?[\w.]+|\([^()]*\)|.", text) else f"({text})")

    def _fraction(self) -> str:
        above, below = self._argument(), self._argument()
        above = above if _PRODUCT.fullmatch(_emptied(above)) else f"({above})"
        below = below if _ONE.fullmatch(_emptied(below)) else f"({below})"
        return f"{above} / {below}" if " " in above + below else f"{above}/{below}"

    def _multiplies(self) -> bool:
        """Tell whether a factor comes next, or a power."""
        sign = next((sign for sign in self._signs[self._at :] if not sign.isspace() and sign != r"\,"), "")
        name = sign[1:]
        if name:
            letter = name not in _CLOSING and _letter(name) is not None
            return letter or name in (*_ACCENTS, "frac", "tfrac", "dfrac", "sqrt", "left")
        return sign.isalnum() or sign in ("(", "[", "^", "_", "{")


def _letter(name: str) -> tuple[str, str] | None:
    """Return the letter, bar or word that a command stands for, and the same in ASCII."""
    for table in (_LETTERS, _OPENING, _CLOSING):
        if name in table:
            return table[name]
    if _WORD.fullmatch(name):
        return name, name
    size, greek = "SMALL" if name.islower() else "CAPITAL", name.lower().removeprefix("var")
    try:  # Unicode writes lamda
        return unicodedata.lookup(f"GREEK {size} LETTER {greek.replace('lambda', 'lamda')}"), name
    except KeyError:
        return None


def _emptied(text: str) -> str:
    """Leave of everything in brackets only the brackets."""
    brackets = r"\([^()]+\)|\[[^][]*\]|\{[^{}]*\}|⌈[^⌈⌉]*⌉|⌊[^⌊⌋]*⌋|‖[^‖]*‖|\|\|?[^|]+\|\|?"
    while (emptied := re.sub(brackets, "()", text)) != text:
        text = emptied
    return text
