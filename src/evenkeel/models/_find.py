"""Finding a pretrained model and loading it with a head for the task."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenkeel.errors import ModelError, unknown_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["TINY", "ModelSource", "find_model", "load_model", "load_tokenizer", "longest_text", "skeleton"]

TINY = "tiny"
_TINY_FOLDER = Path(__file__).parent / "tiny"
# Whatever decides what the model computes and how text becomes tokens.
_HASHED = ("config.json", "*.safetensors", "*token*.json", "vocab*", "merges.txt", "*.model")


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A pretrained model that was found.

    Attributes:
        name: what it is called in plans and reports.
        location: a folder, or a hub id.
        fingerprint: hash of its files, or the hub's commit.
    """

    name: str
    location: str
    fingerprint: str


def find_model(name: str) -> ModelSource:
    """Find a model before anything is started.

    Args:
        name: ``"tiny"``, the embedded model; a folder that ``save_pretrained`` wrote; or a hub id.

    Returns:
        Where it is.

    Raises:
        ModelError: if there is no such folder, it holds no model, or the hub cannot be reached.
    """
    folder = _TINY_FOLDER if name == TINY else Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"the folder '{name}' holds no config.json, so it is no pretrained model; give a folder that "
                "save_pretrained wrote"
            )
        if not list(folder.glob("*.safetensors")):
            raise ModelError(
                f"the folder '{name}' holds no *.safetensors, the only weights that are loaded (other formats can run "
                "code); load the model elsewhere once and save it with save_pretrained"
            )
        _check_weights(folder)
        return ModelSource(
            name=Path(os.path.abspath(folder)).name if name != TINY else TINY,
            location=str(folder),
            fingerprint=_hash(folder),
        )
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no folder '{name}'; give an existing folder, a hub id, or '{TINY}'")
    if difflib.get_close_matches(name.lower(), [TINY]):
        raise ModelError(unknown_name("model", name, [TINY]) + "; or give a folder or a hub id")
    return _on_hub(name)


def _check_weights(folder: Path) -> None:
    """Read the header of every weights file, which a broken copy does not survive."""
    from safetensors import SafetensorError, safe_open

    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"the weights '{path}' are damaged ({error}); copy or download them again") from error


def _on_hub(name: str) -> ModelSource:
    config = _from_pretrained("AutoConfig", name)
    return ModelSource(
        name=name, location=name, fingerprint=str(getattr(config, "_commit_hash", None) or "unknown")[:16]
    )


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for pattern in _HASHED:
        for path in sorted(path for path in folder.glob(pattern) if path.is_file()):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer; a model that pads with nothing pads with its end of text.

    Args:
        source: the model.

    Returns:
        The tokenizer.

    Raises:
        ModelError: if it cannot be loaded, or knows no words.
    """
    tokenizer = _from_pretrained("AutoTokenizer", source.location)
    if len(tokenizer) <= len(
        tokenizer.all_special_tokens
    ):  # transformers makes up an empty one where files are missing
        raise ModelError(
            f"the tokenizer of '{source.name}' knows no words, so its files are missing; give a model with "
            "tokenizer.json or the vocabulary that its tokenizer needs"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer  # type: ignore[no-any-return]


def load_model(source: ModelSource, classes: Sequence[str] | None, *, seed: int) -> PreTrainedModel:
    """Load the pretrained weights in float32, and draw a new head or keep that of a language model.

    Args:
        source: the model.
        classes: names of the labels; empty for a regression, whose head has one output and the mean squared error;
            None for a causal language model.
        seed: seeds torch's global generator, from which the head is drawn.

    Returns:
        The model, ready to be fine-tuned.

    Raises:
        ModelError: if it cannot be loaded, or has no form for the task.
    """
    import torch

    torch.manual_seed(seed)
    options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}
    if classes is None:
        _check_causal(source, _from_pretrained("AutoConfig", source.location))
        model = _from_pretrained("AutoModelForCausalLM", source.location, **options)
    else:
        model = _from_pretrained(
            "AutoModelForSequenceClassification",
            source.location,
            **_head(classes),
            **options,
            ignore_mismatched_sizes=True,  # a head of another number of labels is drawn anew
        )
    if model.config.pad_token_id is None:
        model.config.pad_token_id = load_tokenizer(source).pad_token_id
    return model  # type: ignore[no-any-return]


def _head(classes: Sequence[str]) -> dict[str, Any]:
    """Return what the model's configuration says of its head; what a saved one says of another task goes."""
    if not classes:
        return {"num_labels": 1, "problem_type": "regression"}
    return {
        "num_labels": len(classes),
        "id2label": dict(enumerate(classes)),
        "label2id": {label: index for index, label in enumerate(classes)},
        "problem_type": "single_label_classification",
    }


def _check_causal(source: ModelSource, config: Any) -> None:
    """Refuse what was not saved as a causal language model: an encoder would look at the answer that it is to write."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    saved = getattr(config, "architectures", None) or ["a model without a head"]
    if MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type) not in saved:
        raise ModelError(
            f"'{source.name}' was saved as {saved[0]}, which is no causal language model, and the task asks for "
            "written answers; choose a model that continues texts"
        )


def skeleton(source: ModelSource, classes: Sequence[str] | None) -> PreTrainedModel:
    """Build the model on the ``meta`` device: its structure, without weights, in a moment.

    Args:
        source: the model.
        classes: names of the labels; empty for a regression, None for a causal language model.

    Returns:
        A model that cannot be run, whose components can be asked for.

    Raises:
        ModelError: if the model has no form for the task.
    """
    import torch
    import transformers

    if classes is None:
        config = _from_pretrained("AutoConfig", source.location)
        _check_causal(source, config)
        with torch.device("meta"):
            return transformers.AutoModelForCausalLM.from_config(config)  # type: ignore[no-any-return, no-untyped-call]
    config = _from_pretrained("AutoConfig", source.location, **_head(classes))
    try:
        with torch.device("meta"):
            return transformers.AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-any-return, no-untyped-call]
    except ValueError as error:
        raise ModelError(
            f"'{source.name}' is of the type {config.model_type}, which has no form for sequence classification in "
            "transformers; choose another model"
        ) from error


def longest_text(source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens the model takes, special ones among them."""
    positions = getattr(_from_pretrained("AutoConfig", source.location), "max_position_embeddings", None)
    return int(min(tokenizer.model_max_length, positions or tokenizer.model_max_length))


def _from_pretrained(auto_class: str, location: str, **options: Any) -> Any:
    import transformers

    try:
        return getattr(transformers, auto_class).from_pretrained(location, **options)
    except Exception as error:  # many kinds from several libraries; none says what to do in our terms
        reason = f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"
        if Path(location).is_dir():
            raise ModelError(f"the model in '{location}' cannot be loaded ({reason})") from error
        raise ModelError(
            f"'{location}' is no folder here, and could not be had from the hub ({reason}); without a network, "
            f"download the model elsewhere and give its folder with --model, or use '{TINY}', which is built in"
        ) from error
