from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests import _models
from tests.partition import _zoo
from torch import Tensor, nn
from torch.nn.parallel import DataParallel
from transformers import AlbertConfig, AlbertForSequenceClassification, BertModel, PreTrainedModel

from evenkeel.errors import MeasureError
from evenkeel.measure import layer_replacement, layer_weights

# PEFT uses an old name of transformers' switch.
CHECKPOINTING = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")

State = dict[str, Tensor]


def state(model: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: State, other: State) -> bool:
    """Bit for bit, so that NaN equals itself and 0 is not -0."""
    return one.keys() == other.keys() and all(
        tensor.numpy().tobytes() == other[name].numpy().tobytes() for name, tensor in one.items()
    )


def tuned(model: nn.Module, *, seed: int = 1) -> nn.Module:
    """Move every weight a little, as a training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=_models.Rows(4).ids).logits
    return found


def pretrained_names(found: State, pretrained: State) -> set[str]:
    """The names under which a model has the pretrained values."""
    return {name for name, tensor in found.items() if torch.equal(tensor, pretrained[name])}


# --- what is put back


@pytest.mark.parametrize("layers", [1, 3])
def test_the_top_layers_of_bert_are_pretrained_again(layers: int) -> None:
    before = state(_models.bert(layers))
    model = tuned(_models.bert(layers))
    after = state(model)

    results = layer_replacement(model, before, logits)

    assert len(results) == layers + 1
    for k, found in enumerate(results):
        top = tuple(f"bert.encoder.layer.{layer}." for layer in range(layers - k, layers))
        surgery = {name: before[name] if name.startswith(top) else tensor for name, tensor in after.items()}
        other = _models.bert(layers, seed=7).eval()
        other.load_state_dict(surgery)
        assert torch.equal(found, logits(other))
    assert len({result.numpy().tobytes() for result in results}) == layers + 1  # each layer makes a difference
    assert same(state(model), after)


PREFIXES = {
    "bert": "bert.encoder.layer.", "roberta": "roberta.encoder.layer.", "electra": "electra.encoder.layer.",
    "distilbert": "distilbert.transformer.layer.", "llama": "model.layers.",
}  # fmt: skip


@pytest.mark.parametrize("name", PREFIXES)
def test_whatever_is_in_no_layer_stays_as_it_was_tuned(name: str) -> None:
    make: Callable[[int], PreTrainedModel] = _models.ALL[name]
    model = make(2).requires_grad_(requires_grad=False)  # frozen parameters are in layers too
    before = state(model)
    tuned(model)
    parameters = {name for name, _ in model.named_parameters()}
    found = layer_replacement(model, before, state)
    for k, result in enumerate(found):
        top = tuple(f"{PREFIXES[name]}{layer}." for layer in range(2 - k, 2))
        assert pretrained_names(result, before) & parameters == {name for name in parameters if name.startswith(top)}


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_the_decoder_goes_before_the_encoder(name: str) -> None:
    model = _zoo.fast(name)
    before = state(model)
    tuned(model)
    found = layer_replacement(model, before, state)
    blocks = {
        "t5": ["decoder.block.1", "decoder.block.0", "encoder.block.1", "encoder.block.0"],
        "bart": ["decoder.layers.1", "decoder.layers.0", "encoder.layers.1", "encoder.layers.0"],
    }[name]
    assert len(found) == 5
    for k, result in enumerate(found):
        parts = [f".{block}." for block in blocks[:k]]
        expected = {name for name, _ in model.named_parameters() if any(part in f".{name}" for part in parts)}
        # T5's decoder has embeddings of relative positions in its first block, which are in the layer too.
        assert pretrained_names(result, before) & set(dict(model.named_parameters())) == expected


def test_albert_has_one_layer_to_put_back() -> None:
    config = AlbertConfig(
        vocab_size=32, hidden_size=16, embedding_size=8, num_attention_heads=2, intermediate_size=16,
        num_hidden_layers=3, max_position_embeddings=16,
    )  # fmt: skip
    model = AlbertForSequenceClassification(config)
    before = state(model)
    after = state(tuned(model))
    found = layer_replacement(model, before, state)
    assert len(found) == 2
    assert same(found[0], after)
    block = "albert.encoder.albert_layer_groups."
    assert {name for name in before if name.startswith(block)} <= pretrained_names(found[1], before)


def test_lists_beside_the_layers_are_put_back_with_them() -> None:
    model = _zoo.fast("xlm")
    before = state(model)
    tuned(model)
    found = pretrained_names(layer_replacement(model, before, state)[1], before)
    lists = {name.split(".")[1] for name, _ in model.named_parameters() if name in found}
    assert lists == {"attentions", "layer_norm1", "ffns", "layer_norm2"}
    assert {name.split(".")[2] for name, _ in model.named_parameters() if name in found} == {"1"}


def test_what_several_layers_share_goes_with_the_lowest() -> None:
    class Layer(nn.Module):
        def __init__(self, shared: nn.Module) -> None:
            super().__init__()
            self.own, self.shared = nn.Linear(1, 1), shared

    shared = nn.Linear(1, 1)
    model = nn.ModuleDict({"layers": nn.ModuleList(Layer(shared) for _ in range(3))})
    before = state(model)
    tuned(model)
    tops = [pretrained_names(found, before) for found in layer_replacement(model, before, state)]
    assert [sorted(name for name in top if name.endswith("shared.weight")) for top in tops] == [
        *([[]] * 3),
        [f"layers.{layer}.shared.weight" for layer in range(3)],
    ]
    assert [sum(name.endswith("own.weight") for name in top) for top in tops] == [0, 1, 2, 3]


# --- in which forms the pretrained weights may come


def forms() -> dict[str, Callable[[PreTrainedModel], object]]:
    return {
        "model": lambda model: model,
        "wrapped model": DataParallel,
        "encoder": lambda model: model.base_model,
        "state of the encoder": lambda model: state(model.base_model),
        "state of a wrapped model": lambda model: state(DataParallel(model)),
        "copied layers": layer_weights,
        "half precision": lambda model: {name: tensor.half() for name, tensor in state(model).items()},
    }


@pytest.mark.parametrize("form", forms())
@pytest.mark.parametrize("wrap", [lambda model: model, DataParallel], ids=["plain", "wrapped"])
def test_prefixes_do_not_matter(form: str, wrap: Callable[[nn.Module], nn.Module]) -> None:
    before = state(_models.bert())
    model = tuned(_models.bert())
    given = forms()[form](_models.bert())
    found = layer_replacement(wrap(model), given, lambda _: state(model))[2]  # type: ignore[arg-type]
    rounded = {name: tensor.half().float() if form == "half precision" else tensor for name, tensor in before.items()}
    layers = {name for name in before if ".encoder.layer." in name}
    assert pretrained_names(found, rounded) & layers == layers


def test_a_classifier_serves_for_a_bare_encoder() -> None:
    config = _models.bert().config
    model = tuned(BertModel(config))
    found = layer_replacement(model, _models.bert(), state)[2]
    expected = _models.bert().bert.encoder.state_dict()
    assert all(torch.equal(found[f"encoder.{name}"], tensor) for name, tensor in expected.items())


@CHECKPOINTING
def test_adapters_are_put_back_as_they_were() -> None:
    plain = _models.bert().eval()
    before = logits(plain)
    model = get_peft_model(plain, LoraConfig(target_modules=["query", "value"], r=2)).eval()
    weights = layer_weights(model)  # an adapter does nothing at first
    for name, parameter in model.named_parameters():
        if "lora" in name:
            nn.init.normal_(parameter)
    results = layer_replacement(model, weights, logits)
    assert torch.equal(results[2], before)
    assert not torch.allclose(results[1], before, atol=1e-3)
    with pytest.raises(MeasureError, match=r"no tensor 'bert\.encoder\.layer\.1\.attention\.self\.query\.lora_A"):
        layer_replacement(model, _models.bert(), logits)


def test_copied_layers_are_copies_of_all_layers_and_nothing_else() -> None:
    model = _models.bert().requires_grad_(requires_grad=False)
    weights = layer_weights(model)
    assert set(weights) == {name for name, _ in model.named_parameters() if ".encoder.layer." in name}
    before = state(model)
    tuned(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights.items())


# --- the model afterwards


def test_weights_of_nan_come_back_bit_for_bit() -> None:
    model = _models.bert()
    before = state(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.flatten()[0] = float("nan")
            parameter.flatten()[-1] = -0.0
    after = state(model)
    layer_replacement(model, before, logits)
    assert same(state(model), after)


class BrokenError(Exception):
    pass


@pytest.mark.parametrize("fails_at", [0, 1, 2])
@pytest.mark.parametrize("error", [BrokenError, KeyboardInterrupt])
def test_weights_come_back_when_the_evaluation_raises(fails_at: int, error: type[BaseException]) -> None:
    model = _models.bert()
    before = state(model)
    after = state(tuned(model))
    calls = iter(range(3))

    def evaluate(_: nn.Module) -> None:
        if next(calls) == fails_at:
            raise error

    with pytest.raises(error):
        layer_replacement(model, before, evaluate)
    assert same(state(model), after)


def test_a_model_in_training_stays_so_and_keeps_its_gradients() -> None:
    model = _models.bert().train()
    _models.backward(model)
    gradients = [parameter.grad for parameter in model.parameters()]
    layer_replacement(model, _models.bert(), lambda _: None)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is grad for parameter, grad in zip(model.parameters(), gradients, strict=True))


# --- what cannot be


def never(_: nn.Module) -> None:
    raise AssertionError("nothing may be evaluated before all is checked")


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(MeasureError, match="Linear has no layers that could be put back"):
        layer_replacement(nn.Linear(2, 2), {}, never)


def test_another_shape_is_refused_by_name() -> None:
    other = _models.bert(intermediate_size=8)
    message = r"'bert\.encoder\.layer\.1\.intermediate\.dense\.weight' has the shape \(8, 16\).* has \(32, 16\)"
    with pytest.raises(MeasureError, match=message):
        layer_replacement(_models.bert(), other, never)


def test_a_model_with_fewer_layers_is_refused() -> None:
    with pytest.raises(MeasureError, match=r"no tensor 'bert\.encoder\.layer\.2\.attention\.self\.query\.weight'"):
        layer_replacement(_models.bert(3), _models.bert(2), never)


@pytest.mark.parametrize(
    ("given", "has"),
    [({}, "nothing"), ({"weight": torch.ones(1), "query.weight": torch.ones(1)}, "'weight', 'query.weight'")],
    ids=["empty", "others"],
)
def test_weights_of_something_else_are_refused(given: State, has: str) -> None:
    with pytest.raises(MeasureError, match=f"have none of the model's layers: no 'bert.encoder.layer.1.*but {has};"):
        layer_replacement(_models.bert(), given, never)


def test_the_weights_of_the_tuned_model_itself_are_refused() -> None:
    model = _models.bert()
    before = model.state_dict()  # no copy: it changes with the model
    tuned(model)
    with pytest.raises(MeasureError, match="is the model's own memory, so that it changed with the training"):
        layer_replacement(model, before, never)


def test_weights_without_values_are_refused() -> None:
    with torch.device("meta"):
        empty = _models.bert()
    with pytest.raises(MeasureError, match="on the meta device and has no values"):
        layer_replacement(_models.bert(), empty, never)


def test_what_holds_no_tensors_is_refused() -> None:
    with pytest.raises(MeasureError, match="are a list; give a model, or a mapping"):
        layer_replacement(_models.bert(), [], never)  # type: ignore[arg-type]
    lists = {name: tensor.tolist() for name, tensor in state(_models.bert()).items()}
    with pytest.raises(MeasureError, match="have no tensor 'bert"):
        layer_replacement(_models.bert(), lists, never)
