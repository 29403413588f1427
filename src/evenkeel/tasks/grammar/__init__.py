"""A small English grammar, and three tasks made of it: no download, every label right by construction."""

from evenkeel.tasks.grammar._rows import TASKS, pairs, rows, sentences
from evenkeel.tasks.grammar._words import VOCABULARY, WORD_CLASSES

__all__ = ["TASKS", "VOCABULARY", "WORD_CLASSES", "pairs", "rows", "sentences"]
