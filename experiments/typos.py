"""Typos that a reader would forgive: letters dropped, doubled or swapped inside longer words.

A text and a rate decide over the typos, nothing else: every model reads the very same corrupted texts. The
typos of a low rate are among those of a higher one.
"""

import re
import zlib
from collections.abc import Iterable

import numpy as np

from datasets import Example

WORD = re.compile(r"[^\W\d_]{4,}")  # words of four letters or more


def mistyped(word: str, kind: str, place: int) -> str:
    """The word with one typo at its letter `place`, from 1 to the last letter but two.

    Swapping two equal letters would change nothing: there one is doubled.
    """
    before, letter, after, rest = word[:place], word[place], word[place + 1], word[place + 2 :]
    if kind == "dropped":
        return before + after + rest
    if kind == "swapped" and letter != after:
        return before + after + letter + rest
    return before + 2 * letter + after + rest


def with_typos(text: str, rate: float) -> str:
    """The text with one typo in each of round(rate x n) of its n words of four letters or more.

    The first and the last letter stay.
    """
    words = list(WORD.finditer(text))
    random = np.random.default_rng(zlib.crc32(text.encode()))
    chosen = random.permutation(len(words))[: round(rate * len(words))]
    kinds = random.choice(["dropped", "doubled", "swapped"], len(words))
    places = random.random(len(words))
    for i in sorted(chosen, reverse=True):  # from the end, so that the places before it stay
        begin, end = words[i].span()
        place = 1 + int(places[i] * (end - begin - 3))
        text = text[:begin] + mistyped(text[begin:end], str(kinds[i]), place) + text[end:]
    return text


def corrupted(examples: Iterable[Example], rate: float) -> list[Example]:
    """The examples with typos in each of their texts."""
    return [
        example._replace(texts=tuple(with_typos(text, rate) for text in example.texts))
        for example in examples
    ]
