from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig

from evenkeel.errors import ModelError
from evenkeel.models import HEADS, TINY, find_model, load_model, structure

BERT: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 20,
}


def save(folder: Path, content: object, name: str = "config.json") -> str:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return str(folder / name)


# --- what is built


def test_the_structure_is_that_of_the_model(small_model: Path) -> None:
    whole = load_model(find_model(str(small_model)), ("a", "b"), seed=0)
    bare = structure(str(small_model), head="sequence-classification")
    assert type(bare) is type(whole)
    assert {parameter.device.type for parameter in bare.parameters()} == {"meta"}
    assert {name: tensor.shape for name, tensor in bare.named_parameters()} == {
        name: tensor.shape for name, tensor in whole.named_parameters()
    }


def test_no_weights_are_needed(small_model: Path, tmp_path: Path) -> None:
    shutil.copy(small_model / "config.json", tmp_path / "any name")
    shutil.copy(small_model / "config.json", tmp_path / "config.json")
    found = [dict(structure(str(place)).named_parameters()) for place in (tmp_path, tmp_path / "any name", small_model)]
    assert found[0].keys() == found[1].keys() == found[2].keys()


def test_tied_weights_stay_tied() -> None:
    model = structure(TINY)
    assert type(model).__name__ == "BertForMaskedLM"
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_the_default_device_is_left_alone() -> None:
    structure(TINY)
    assert torch.empty(0).device.type == "cpu"


@pytest.mark.parametrize(
    ("changes", "head", "built"),
    [
        ({"architectures": ["BertForMaskedLM"]}, None, "BertForMaskedLM"),
        ({"architectures": ["BertForMaskedLM"]}, "base", "BertModel"),
        ({"architectures": ["BertForSomething", "BertModel"]}, None, "BertModel"),
        ({"architectures": ["BertForSomething"]}, None, "BertForSequenceClassification"),
        ({"architectures": ["BertTokenizer"]}, None, "BertForSequenceClassification"),  # transformers has it: no model
        ({}, None, "BertForSequenceClassification"),
        ({}, "causal-lm", "BertLMHeadModel"),
        ({}, "token-classification", "BertForTokenClassification"),
    ],
)
def test_the_class_is_the_one_named_or_the_first_that_there_is(
    tmp_path: Path, changes: dict[str, Any], head: str | None, built: str
) -> None:
    assert type(structure(save(tmp_path, BERT | changes), head=head)).__name__ == built


@pytest.mark.parametrize(
    ("model_type", "built"),
    [("mamba", "MambaForCausalLM"), ("pegasus", "PegasusForCausalLM"), ("dpt", "DPTModel")],
)
def test_types_without_a_classifier(tmp_path: Path, model_type: str, built: str) -> None:
    small = {"num_hidden_layers": 1, "encoder_layers": 1, "decoder_layers": 1}
    assert type(structure(save(tmp_path, {"model_type": model_type, **small}))).__name__ == built


@pytest.mark.parametrize("head", HEADS)
def test_every_head_is_built_or_refused_by_name(tmp_path: Path, head: str) -> None:
    path = save(tmp_path, BERT)
    if head in ("seq2seq-lm", "image-text-to-text"):
        with pytest.raises(ModelError, match=rf"type bert, .* no model with the head '{head}'; it has: sequence-"):
            structure(path, head=head)
    else:
        assert isinstance(structure(path, head=head).config, BertConfig)


# --- what cannot be built


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "is a JSON list; it must be an object"),
        ({}, "names no model_type, so nobody knows what it describes; add the type"),
        ({"model_type": 7}, "names no model_type"),
        ({"model_type": "brt"}, r"transformers .* has no model_type 'brt' \(did you mean 'bert'\?\); a model that"),
        (
            {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}},
            "no model_type 'mine'; .*its code would run: build it yourself, and ask evenkeel.components",
        ),
        (BERT | {"hidden_size": "wide"}, r"\(type bert\) cannot be understood: .*'hidden_size': .*; correct it"),
        (BERT | {"hidden_size": 15}, r"BertFor.* cannot be built .*\(type bert\): .*not a multiple.*; correct the"),
        (BERT | {"vocab_size": -2}, "cannot be built from the configuration of .*negative dimension"),
    ],
)
def test_configurations_that_cannot_be(tmp_path: Path, content: object, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        structure(save(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"model_type":', r"no configuration that can be read \(JSONDecodeError: .*\); it must hold JSON in UTF-8"),
        (b'{"model_type": "\xff"}', "no configuration that can be read .UnicodeDecodeError"),
        (b" " * (2**24 + 1), "too large for a configuration; give the config.json beside the weights"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    for name in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(ModelError, match=said):
            structure(str(name))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tinny", "unknown model 'tinny': did you mean 'tiny'.*a config.json, or a hub id"),
        ("./none", "there is no folder and no file './none'; give a folder, a config.json, a hub id, or 'tiny'"),
        ("none.json", "there is no folder and no file 'none.json'"),
        ("a/b/c", "there is no folder and no file 'a/b/c'"),
        ("org/model", "'org/model' is no folder or file here, and could not be had from the hub .*give that file"),
    ],
)
def test_a_model_that_is_not_there(name: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        structure(name)


def test_a_folder_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config.json; give a folder that save_pretrained wrote"):
        structure(str(tmp_path))


def test_an_unknown_head_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ModelError, match="unknown head 'masked': did you mean 'masked-lm'"):
        structure("./none", head="masked")
