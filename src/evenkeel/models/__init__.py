"""Pretrained models: the embedded one, a folder, or a hub id."""

from evenkeel.models._find import TINY, ModelSource, find_model, load_model, load_tokenizer, longest_text, skeleton
from evenkeel.models._structure import HEADS, structure

__all__ = [
    "HEADS",
    "TINY",
    "ModelSource",
    "find_model",
    "load_model",
    "load_tokenizer",
    "longest_text",
    "skeleton",
    "structure",
]
