from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from tests.study._small import POSITIONS

from evenkeel.errors import ModelError
from evenkeel.models import TINY, find_model, load_model, load_tokenizer, longest_text, skeleton
from evenkeel.partition import components
from evenkeel.testing._tiny import language_model


@pytest.fixture
def copy(small_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_model, tmp_path / "copy"))


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


# --- finding


def test_a_folder_is_found_under_any_of_its_names(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_model(str(small_model))
    assert found.name == "small"
    assert find_model(f"{small_model}/") == found
    monkeypatch.chdir(small_model)
    for name in (".", "../small", "../small/."):
        again = find_model(name)
        assert (again.name, again.fingerprint) == (found.name, found.fingerprint)


def test_the_fingerprint_is_of_the_content(small_model: Path, copy: Path) -> None:
    known = find_model(str(small_model)).fingerprint
    assert find_model(str(copy)).fingerprint == known
    (copy / "notes.txt").write_text("anything", encoding="utf-8")
    assert find_model(str(copy)).fingerprint == known
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert find_model(str(copy)).fingerprint != known


def test_the_embedded_model_is_found_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    found = find_model(TINY)
    assert found.name == TINY
    assert len(load_tokenizer(found)("the girl sleeps")["input_ids"]) > 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tinny", "unknown model 'tinny': did you mean 'tiny'.*; or give a folder or a hub id"),
        ("./none", "there is no folder './none'; give an existing folder, a hub id, or 'tiny'"),
        ("a/b/c", "there is no folder 'a/b/c'"),
        ("~/none/at/all", "there is no folder '~/none/at/all'"),
        ("org/model", "'org/model' is no folder here, and could not be had from the hub .*--model, or use 'tiny'"),
        ("bert-base-uncased", "'bert-base-uncased' is no folder here, and could not be had"),
    ],
)
def test_a_model_that_is_not_there(name: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        find_model(name)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("config.json", "holds no config.json, so it is no pretrained model; give a folder that save_pretrained wrote"),
        (
            "model.safetensors",
            r"holds no \*.safetensors, the only weights that are loaded .*save it with save_pretrained",
        ),
    ],
)
def test_a_folder_without_a_model(copy: Path, missing: str, said: str) -> None:
    (copy / missing).unlink()
    with pytest.raises(ModelError, match=said):
        find_model(str(copy))


def test_pickled_weights_are_never_loaded(copy: Path) -> None:
    os.replace(copy / "model.safetensors", copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="other formats can run code"):
        find_model(str(copy))


# --- loading


def test_the_seed_draws_the_head_and_nothing_else(small_model: Path) -> None:
    source = find_model(str(small_model))
    one, again, other = (load_model(source, ("no", "yes"), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert {name for name in one if not torch.equal(one[name], other[name])} == {"classifier.weight"}
    assert {tensor.dtype for tensor in one.values() if tensor.is_floating_point()} == {torch.float32}


def test_a_regression_has_one_output(small_model: Path, tmp_path: Path) -> None:
    source = find_model(str(small_model))
    config = load_model(source, (), seed=0).config
    assert (config.num_labels, config.problem_type) == (1, "regression")
    assert skeleton(source, ()).config.num_labels == 1
    load_model(source, (), seed=0).save_pretrained(tmp_path)
    assert (
        load_model(find_model(str(tmp_path)), ("a", "b"), seed=0).config.problem_type == "single_label_classification"
    )


def test_language_models_keep_their_heads(tmp_path: Path, small_model: Path) -> None:
    language_model("gpt2").save_pretrained(tmp_path / "causal")
    shutil.copy(small_model / "tokenizer.json", tmp_path / "causal")
    shutil.copy(small_model / "tokenizer_config.json", tmp_path / "causal")
    source = find_model(str(tmp_path / "causal"))
    one, other = (load_model(source, None, seed=seed).state_dict() for seed in (1, 2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert type(skeleton(source, None)).__name__ == "GPT2LMHeadModel"
    with pytest.raises(ModelError, match="'small' was saved as BertModel, which is no causal language model"):
        load_model(find_model(str(small_model)), None, seed=0)


def test_classes_are_named_in_the_configuration(small_model: Path) -> None:
    config = load_model(find_model(str(small_model)), ("a", "b", "c"), seed=0).config
    assert config.id2label == {0: "a", 1: "b", 2: "c"}
    assert config.label2id == {"a": 0, "b": 1, "c": 2}


def test_a_head_of_another_size_is_drawn_anew(small_model: Path, tmp_path: Path) -> None:
    load_model(find_model(str(small_model)), ("a", "b", "c"), seed=0).save_pretrained(tmp_path)
    assert load_model(find_model(str(tmp_path)), ("a", "b"), seed=0).config.num_labels == 2


def test_the_skeleton_has_the_components_of_the_model(small_model: Path) -> None:
    source = find_model(str(small_model))
    bare = skeleton(source, ("a", "b"))
    assert {parameter.device.type for parameter in bare.parameters()} == {"meta"}
    whole = components(load_model(source, ("a", "b"), seed=0))
    assert [part.path for part in components(bare)] == [part.path for part in whole]


def test_the_longest_text_is_what_model_and_tokenizer_take(small_model: Path, copy: Path) -> None:
    source = find_model(str(small_model))
    tokenizer = load_tokenizer(source)
    assert longest_text(source, tokenizer) == POSITIONS
    tokenizer.model_max_length = POSITIONS - 2  # RoBERTa's way: two positions are never used
    assert longest_text(source, tokenizer) == POSITIONS - 2


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_damaged_weights_are_refused(copy: Path, kept: int) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(ModelError, match="weights '.*model.safetensors' are damaged .*; copy or download them again"):
        find_model(str(copy))


def test_a_model_without_a_tokenizer_is_refused(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").unlink()  # transformers would make up a tokenizer that knows no word
    with pytest.raises(ModelError, match="the tokenizer of 'copy' knows no words, so its files are missing; give"):
        load_tokenizer(find_model(str(copy)))


def test_a_damaged_tokenizer_is_refused(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="the model in '.*copy' cannot be loaded"):
        load_tokenizer(find_model(str(copy)))


def test_a_model_that_classifies_nothing_is_refused(copy: Path) -> None:
    change(copy / "config.json", model_type="vit", architectures=["ViTModel"])
    with pytest.raises(ModelError, match="'copy' is of the type vit, which has no form for sequence classification"):
        skeleton(find_model(str(copy)), ("a", "b"))
