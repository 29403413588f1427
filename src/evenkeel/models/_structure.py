"""The structure of a model from its configuration alone: no weight is read or downloaded."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenkeel.errors import ModelError, unknown_name
from evenkeel.models._find import TINY, find_model

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = ["HEADS", "structure"]

# What stands on top of the blocks, and where transformers lists the classes that have it by the type of model.
HEADS = {
    "sequence-classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "causal-lm": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "seq2seq-lm": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "masked-lm": "MODEL_FOR_MASKED_LM_MAPPING",
    "token-classification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
    "question-answering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING",
    "multiple-choice": "MODEL_FOR_MULTIPLE_CHOICE_MAPPING",
    "image-text-to-text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "base": "MODEL_MAPPING",
}
_LARGEST = 2**24  # bytes; more is no configuration, but perhaps somebody's weights
_USUAL = ("sequence-classification", "causal-lm", "seq2seq-lm", "base")


def structure(name: str, *, head: str | None = None) -> PreTrainedModel:
    """Build a model on the ``meta`` device: all modules and shapes, no numbers.

    The class is the one that the configuration names in ``architectures``; where it names none that transformers has,
    the first that the type has of sequence classification, causal language model, sequence-to-sequence language model
    and the model without a head.

    Args:
        name: ``"tiny"``, the embedded model; a folder with a ``config.json``; such a file itself, under any name; or a
            hub id, of which the configuration alone is downloaded.
        head: one of ``HEADS``, instead of what the configuration names.

    Returns:
        A model that cannot be run, whose components can be asked for.

    Raises:
        ModelError: if there is no such model, its configuration cannot be read, transformers does not know its type,
            or no model can be built from it.

    Example:
        >>> type(structure("tiny", head="sequence-classification")).__name__
        'BertForSequenceClassification'
    """
    if head is not None and head not in HEADS:
        raise ModelError(unknown_name("head", head, HEADS))
    import torch

    config = _configuration(name)
    build = _class(name, config, head)
    try:
        with torch.device("meta"):
            return build(config)  # type: ignore[no-any-return]
    except Exception as error:  # whatever a model's code makes of numbers that it does not expect
        raise ModelError(
            f"{build.__name__} cannot be built from the configuration of '{name}' (type {config.model_type}): "
            f"{_reason(error)}; correct the configuration, install what is missing, or choose another --head"
        ) from error


def _class(name: str, config: PreTrainedConfig, head: str | None) -> Any:
    """Choose the class that is built."""
    import transformers

    if head is None:
        for known in config.architectures or ():
            named = getattr(transformers, known, None)
            if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
                return named
    heads = {known: found for known in HEADS if (found := _of_type(config, known)) is not None}
    for known in _USUAL if head is None else (head,):
        if known in heads:
            return heads[known]
    raise ModelError(
        f"'{name}' is of the type {config.model_type}, of which transformers has no model"
        + (f" with the head '{head}'" if head else "")
        + (f"; it has: {', '.join(heads)}" if heads else "; choose another model")
    )


def _of_type(config: PreTrainedConfig, head: str) -> Any:
    """Return transformers' class for a type of model and a head, or None."""
    from transformers.models.auto import modeling_auto

    mapping = getattr(modeling_auto, HEADS[head])
    found = mapping.get(type(config), None)
    return found[0] if isinstance(found, list | tuple) else found


def _configuration(name: str) -> PreTrainedConfig:
    """Read a configuration, after looking at what says which code is to understand it."""
    from transformers import CONFIG_MAPPING, AutoConfig

    location = _location(name)
    model_type = (_read(name, location) if isinstance(location, Path) else _download(name)).get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise ModelError(
            f"the configuration of '{name}' names no model_type, so nobody knows what it describes; add the type, such "
            'as "model_type": "bert", or give a folder that save_pretrained wrote'
        )
    if model_type not in CONFIG_MAPPING:
        raise ModelError(
            f"'{name}': {_unknown_type(model_type, CONFIG_MAPPING)}; a model that brings code of its own is not built "
            "here, for its code would run: build it yourself, and ask evenkeel.components(model)"
        )
    try:
        return AutoConfig.from_pretrained(str(location), trust_remote_code=False)  # type: ignore[no-any-return]
    except Exception as error:  # values that the type's own checks refuse, by errors of many kinds
        raise ModelError(
            f"the configuration of '{name}' (type {model_type}) cannot be understood: {_reason(error)}; correct it"
        ) from error


def _unknown_type(model_type: str, known: Any) -> str:
    """Say that transformers does not know a type, without listing the hundreds that it knows."""
    import transformers

    near = difflib.get_close_matches(model_type, list(known), n=1, cutoff=0.7)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    return f"transformers {transformers.__version__} has no model_type '{model_type}'{hint}"


def _location(name: str) -> Path | str:
    """Return the file of the configuration, or the hub id."""
    path = Path(find_model(TINY).location if name == TINY else name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if (path / "config.json").is_file():
            return path / "config.json"
        raise ModelError(
            f"the folder '{name}' holds no config.json; give a folder that save_pretrained wrote, or a configuration"
        )
    if name.startswith((".", "/", "~")) or name.endswith(".json") or name.count("/") > 1:
        raise ModelError(
            f"there is no folder and no file '{name}'; give a folder, a config.json, a hub id, or '{TINY}'"
        )
    if difflib.get_close_matches(name.lower(), [TINY]):
        raise ModelError(unknown_name("model", name, [TINY]) + "; or give a folder, a config.json, or a hub id")
    return name


def _read(name: str, path: Path) -> dict[str, Any]:
    if path.stat().st_size > _LARGEST:
        raise ModelError(f"'{path}' is too large for a configuration; give the config.json beside the weights")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"'{path}' is no configuration that can be read ({_reason(error)}); it must hold JSON in UTF-8, as "
            "save_pretrained writes it"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(
            f"the configuration of '{name}' is a JSON {type(content).__name__}; it must be an object, as "
            "save_pretrained writes it"
        )
    return content


def _download(name: str) -> dict[str, Any]:
    from transformers import PreTrainedConfig

    try:
        content, _ = PreTrainedConfig.get_config_dict(name)
    except Exception as error:  # many kinds from several libraries; none says what to do in our terms
        raise ModelError(
            f"'{name}' is no folder or file here, and could not be had from the hub ({_reason(error)}); without a "
            f"network, download its config.json elsewhere and give that file, or use '{TINY}', which is built in"
        ) from error
    return content


def _reason(error: Exception) -> str:
    first, *more = str(error).splitlines() or ["no message"]
    said = f"{first} {more[0].strip()}" if more and first.endswith(":") else first
    return f"{type(error).__name__}: {said}"
