import pytest
import torch

from mmtrain.models.model import ModelConfig, ModelError, TaskSpec, build_model
from mmtrain.models.multimodel import BodyError, Config
from pipelines.errors import UnknownNameError
from tests.mmtrain.models.tiny import TASKS, example_inputs, tiny_model, token_rows

torch.set_num_threads(1)

DECODING = {"body/encoder", "body/mixer", "body/decoder", "experts/encoder", "experts/decoder"}
OWNERS = {
    "en_de": DECODING | {"modality/text", "modality/text_output"},
    "en_fr": DECODING | {"modality/text", "modality/text_output"},
    "caption": DECODING | {"modality/image", "modality/text_output"},
    "digits": {"body/encoder", "experts/encoder", "modality/image", "task/digits"},
    "topic": {"body/encoder", "experts/encoder", "modality/text", "task/topic"},
    "speech": DECODING | {"modality/spectral", "modality/text_output"},
    "sound": {"body/encoder", "experts/encoder", "modality/waveform", "task/sound"},
}


def run(model, task, **inputs):
    values, lengths = example_inputs(TASKS[[t.name for t in TASKS].index(task)].input_net)
    targets, target_lengths = token_rows(6, 4, seed=3)
    fields = {"inputs": values, "input_lengths": lengths, "targets": targets}
    return model(task=task, **{**fields, "target_lengths": target_lengths, **inputs})


@pytest.mark.parametrize("task", [task.name for task in TASKS])
def test_a_step_on_a_task_gives_gradients_to_all_of_its_owners_and_to_no_others(task):
    model = tiny_model()
    outputs = run(model, task)
    (outputs.logits.square().sum() + outputs.auxiliary_loss).backward()
    assert model.owners(task) == OWNERS[task]
    for name, weight in model.named_parameters():
        owned = model.parameter_owner(name) in OWNERS[task]
        assert (weight.grad is not None) == owned, name


def test_every_parameter_has_one_of_the_owners():
    model = tiny_model()
    owners = {model.parameter_owner(name) for name, _ in model.named_parameters()}
    assert owners == set.union(*OWNERS.values())


def test_tasks_of_one_modality_share_its_parameters():
    model = tiny_model()
    assert sorted(model.stems) == ["image", "spectral", "text", "waveform"]
    assert sorted(model.heads) == ["digits", "sound", "text", "topic"]
    assert model.head("en_de") is model.head("en_fr") is model.head("caption")


def test_shapes_of_logits():
    model = tiny_model()
    assert run(model, "en_de").logits.shape == (2, 6, 30)
    assert run(model, "digits", targets=None).logits.shape == (2, 10)


def test_routing_counts_every_real_position_k_times():
    model = tiny_model(active_experts=3, join="none")
    routing = run(model, "en_de").routing
    assert {layer: int(counts.sum()) for layer, counts in routing.items()} == {
        "encoder": (7 + 5) * 3,
        "decoder": (6 + 4) * 3,
    }


def test_the_same_seed_builds_the_same_weights_and_leaves_torchs_generator_alone():
    state = torch.get_rng_state()
    first, second, other = tiny_model(), tiny_model(), tiny_model(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    name = "body.encoder.conv_blocks.0.step1.pointwise.weight"
    assert torch.equal(first.get_parameter(name), second.get_parameter(name))
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))


def test_pointwise_weights_start_orthogonal():
    weight = tiny_model().get_parameter("body.encoder.conv_blocks.0.step1.pointwise.weight")
    torch.testing.assert_close(weight @ weight.T, torch.eye(16), atol=1e-5, rtol=0)


def test_a_config_survives_json_with_the_families_own_classes():
    config = ModelConfig.model_validate(
        {
            "body": {"model_dim": 32, "join": "none"},
            "nets": {"spectral": {"blocks": [{"width": 8, "stride": [2, 1]}, {}]}},
            "vocab_size": 99,
        }
    )
    assert isinstance(config.body, Config)
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config


def test_unknown_names_are_answered_with_near_ones():
    with pytest.raises(UnknownNameError, match="nearest: multimodel"):
        ModelConfig.model_validate({"family": "multimodal", "vocab_size": 9})
    with pytest.raises(UnknownNameError, match="nearest: spectral"):
        build_model(
            ModelConfig(body=Config(), vocab_size=9),
            [TaskSpec(name="a", input_net="spektral", output_net="label", num_outputs=2)],
            seed=0,
        )
    with pytest.raises(UnknownNameError, match="nearest: en_de"):
        run(tiny_model(), "digits").logits, tiny_model().owners("en_da")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"input_net": "linear", "output_net": "text"}, "takes no inputs"),
        ({"input_net": "text", "output_net": "image"}, "makes no outputs"),
        ({"input_net": "text", "output_net": "text"}, "name one"),
    ],
)
def test_tasks_that_make_no_model_are_refused(spec, message):
    config = ModelConfig(body=Config(model_dim=8), vocab_size=9)
    with pytest.raises(ModelError, match=message):
        build_model(config, [TaskSpec(name="a", **spec)], seed=0)


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(BodyError, match="num_heads 3 does not divide model_dim 16"):
        tiny_model(num_heads=3)
    with pytest.raises(BodyError, match="use join 'time'"):
        tiny_model(attention="none", join="none")


@pytest.mark.parametrize(
    "body",
    [
        {"experts": "none"},
        {"experts": "encoder"},
        {"attention": "none"},
        {"attention": "decoder"},
        {"attention": "none", "experts": "none"},
        {"residual": "standard", "attention_output": "none", "gate_noise": "none"},
    ],
)
def test_ablated_builds_run_and_keep_all_shapes(body):
    model = tiny_model(**body)
    for task, shape in (("en_de", (2, 6, 30)), ("digits", (2, 10))):
        outputs = run(model, task)
        assert outputs.logits.shape == shape
        (outputs.logits.square().sum() + outputs.auxiliary_loss).backward()


def test_without_experts_there_is_nothing_to_balance():
    outputs = run(tiny_model(experts="none"), "en_de")
    assert outputs.auxiliary_loss == 0
    assert outputs.routing == {}


def test_the_model_computes_in_bf16():
    outputs = run(tiny_model().bfloat16(), "speech")
    assert outputs.logits.dtype == torch.bfloat16
    assert outputs.logits.isfinite().all()
