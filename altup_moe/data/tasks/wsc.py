"""WSC in T5's simplified form: a text with its pronoun starred, answered by the noun that it means."""

from __future__ import annotations

import re

from altup_moe.data.tasks.rows import RowError

_DETERMINERS = {
    *("a", "an", "the", "this", "that", "these", "those", "which", "whose", "my", "your", "his", "her", "our", "their"),
    *("each", "every", "few", "many", "much", "some"),
}
_OUTSIDE = re.compile(r"^(\W*)(.*?)(\W*)$", re.DOTALL)


def marked(text: str, pronoun: str, index: int) -> tuple[str, str]:
    """The text up to the starred pronoun (`*he*`), and what comes after it.

    Words are what stands between single spaces. Where word `index` is not the pronoun, as in some rows, the nearest
    word that is one is taken; punctuation around it stays outside the stars, set apart.

    Raises:
        RowError: no word of the text is the pronoun.
    """
    words, wanted = text.split(" "), pronoun.strip()
    size, bare = len(wanted.split(" ")), _OUTSIDE.findall(wanted)[0][1].casefold()
    if wanted and " ".join(words[index : index + size]) == wanted:
        return " ".join([*words[:index], f"*{wanted}*"]), " ".join(words[index + size :])
    for n in sorted(range(len(words)), key=lambda n: (abs(n - index), -n)):
        before, core, behind = _OUTSIDE.findall(" ".join(words[n : n + size]))[0]
        if core and core.casefold() == bare:
            head = [*words[:n], *([before] if before else []), f"*{core}*"]
            return " ".join(head), " ".join([*([behind] if behind else []), *words[n + size :]])
    raise RowError("span2_text", pronoun, "no word of the text")


def same_noun(answer: str, noun: str) -> int:
    """1 if the words of one are among the other's, else 0; -1 for an answer without words.

    Case and determiners do not count. A possessive is another noun than the word in it.
    """
    said, meant = _words(answer), _words(noun)
    if not said:
        return -1
    if ("'" in said) != ("'" in meant):
        return 0
    ours, theirs = set(said.split(" ")), set(meant.split(" "))
    return int(ours <= theirs or theirs <= ours)


def _words(text: str) -> str:
    return " ".join(word for word in text.strip().lower().split(" ") if word not in _DETERMINERS)
