import copy

import pytest
import torch
from torch.testing import assert_close
from transformers import ViTConfig, ViTModel

from mmtrain.engines import EngineConfig, build_engine
from mmtrain.engines.optim import OptimizerConfig
from mmtrain.engines.recompute import recompute_blocks
from mmtrain.layers.patches import InputSizeError
from mmtrain.modalities import image_patches, video_tubelets
from mmtrain.models.config import net_of
from mmtrain.models.model import ModelConfig, ModelError, TaskSpec, build_model
from mmtrain.models.polyvit import BodyError, Config, depth_of, released_nets
from pipelines.modalities.text import TextFeature
from tests.mmtrain.models.tiny_polyvit import TASKS, example, spec, tiny_config, tiny_polyvit

torch.set_num_threads(1)

NETS = {task.name: task.input_net for task in TASKS}
PICTURES = [spec(f"p{count}", "image_patches", count) for count in (1000, 100, 10, 37, 45)]
CLIPS = [spec(f"c{count}", "video_tubelets", count) for count in (400, 339)]
SOUNDS = [spec(f"s{count}", "audio_patches", count) for count in (309, 527)]
RELEASED = [*PICTURES, *CLIPS, *SOUNDS]


def parameters_of_base(tasks: list[TaskSpec], **body: int) -> int:
    config = ModelConfig(family="polyvit", body=Config.base(**body), nets=released_nets())
    with torch.device("meta"):
        model = build_model(config, tasks, seed=0)
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(
    ("own", "parameters"),
    [(0, 92_683_471), (3, 135_210_703), (6, 177_737_935), (9, 220_265_167), (12, 262_792_399)],
)
def test_parameters_of_vit_b_on_the_nine_published_tasks(own, parameters):
    for after in {0, own // 2, own}:  # where a modality's own blocks stand changes no count
        body = {"num_adapter_blocks": own - after, "num_adapter_blocks_after": after}
        assert parameters_of_base(RELEASED, **body) == parameters


def test_parameters_of_a_vit_b_for_each_modality_and_for_each_task():
    of_modality = [parameters_of_base(tasks) for tasks in (PICTURES, CLIPS, SOUNDS)]
    assert of_modality == [87_007_144, 89_190_115, 86_598_212]
    assert sum(of_modality) == 262_795_471
    assert sum(parameters_of_base([task]) for task in RELEASED) == 781_734_607


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("tiny", 5_550_000), ("small", 21_700_000), ("base", 85_900_000), ("large", 303_400_000)],
)
def test_sizes_have_their_usual_names(size, parameters):
    """A picture net of 224 pixels in patches of 16, without its head."""
    config = ModelConfig(
        family="polyvit",
        body=getattr(Config, size)(),
        nets={"image_patches": image_patches.Config(height=224, width=224, channels=3)},
    )
    with torch.device("meta"):
        model = build_model(config, [spec("a", "image_patches", 1)], seed=0)
    counted = sum(weight.numel() for weight in model.parameters())
    assert abs(counted / parameters - 1) < 0.01


@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 0), (4, 0), (0, 2), (1, 1), (1, 3)])
@pytest.mark.parametrize("task", NETS)
def test_a_task_gives_gradients_to_its_own_modality_the_shared_blocks_and_its_head(
    task, before, after
):
    model = tiny_polyvit(num_adapter_blocks=before, num_adapter_blocks_after=after)
    model(task=task, **example(task), targets=None).logits.square().sum().backward()
    owners = {"body/blocks", "body/norm", f"modality/{NETS[task]}", f"task/{task}"}
    assert model.owners(task) == (owners - {"body/blocks"} if before + after == 4 else owners)
    used = {f"stems.{NETS[task]}", f"adapters.{NETS[task]}", f"heads.{task}", "body.blocks"}
    for name, weight in model.named_parameters():
        is_used = ".".join(name.split(".")[:2]) in used | {"body.norm"}
        assert (weight.grad is not None) == is_used, name


@pytest.mark.parametrize("task", NETS)
def test_a_step_leaves_other_modalities_and_other_heads_as_they_were_to_the_last_bit(task):
    model = tiny_polyvit(num_adapter_blocks=1, num_adapter_blocks_after=1)
    engine = build_engine(EngineConfig(name="torch"), model=model, optimizer=OptimizerConfig())

    def step(trained: str) -> None:
        outputs = engine.forward(task=trained, **example(trained), targets=None)
        engine.backward(outputs.logits.square().mean())
        engine.step(
            model.owners(trained), learning_rates=dict.fromkeys(model.owners(trained), 0.01)
        )

    for other in NETS:  # all have moments that would move them
        step(other)
    before = copy.deepcopy(model.state_dict())
    step(task)
    mine = (f"stems.{NETS[task]}.", f"adapters.{NETS[task]}.", f"heads.{task}.", "body.")
    changed = {
        name for name, now in model.state_dict().items() if not torch.equal(now, before[name])
    }
    assert changed
    assert all(name.startswith(mine) for name in changed)
    assert any(name.startswith("body.blocks") for name in changed)
    for own in ("blocks", "blocks_after"):
        assert any(name.startswith(f"adapters.{NETS[task]}.{own}.") for name in changed)


def test_blocks_are_all_shared_or_all_of_a_modality():
    shared, own = tiny_polyvit(num_adapter_blocks=0), tiny_polyvit(num_adapter_blocks=4)
    assert len(shared.adapters) == 0
    assert len(shared.body.blocks) == 4
    assert len(own.body.blocks) == 0
    weights = [{id(weight) for weight in net.parameters()} for net in own.adapters.values()]
    assert len(weights) == 4
    assert len(set.union(*weights)) == sum(map(len, weights))


HUGGING_FACE = (
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("attention.q_proj", "attention.query"),
    ("attention.k_proj", "attention.key"),
    ("attention.v_proj", "attention.value"),
    ("attention.o_proj", "attention.out"),
    ("mlp.fc1", "mlp.w_in"),
    ("mlp.fc2", "mlp.w_out"),
)


@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 0), (3, 0), (0, 1), (1, 1), (0, 3)])
def test_features_equal_those_of_a_plain_vit_with_the_same_weights(before, after):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    plain = ViTModel(
        ViTConfig(**sizes, intermediate_size=24, image_size=8, patch_size=4, num_channels=3)
    ).eval()
    for weight in plain.parameters():
        weight.data += 0.1 * torch.randn(weight.shape)
    body = Config(
        model_dim=16, num_layers=3, num_heads=2, mlp_dim=24, layer_norm_eps=1e-12, gelu="erf",
        num_adapter_blocks=before, num_adapter_blocks_after=after,
    )  # fmt: skip
    nets = {"image_patches": image_patches.Config(height=8, width=8, patch=(4, 4), channels=3)}
    config = ModelConfig(family="polyvit", body=body, nets=nets)
    model = build_model(config, [spec("a", "image_patches", 5)], seed=0).eval()
    stem = model.stems["image_patches"]
    stem.embed.load_state_dict(plain.embeddings.patch_embeddings.projection.state_dict())
    stem.tokens.class_token.data = plain.embeddings.cls_token.data.flatten()
    stem.tokens.positions.data = plain.embeddings.position_embeddings.data[0]
    own = model.adapters["image_patches"] if before + after else None
    first, last = (own.blocks, own.blocks_after) if own else ([], [])
    for block, theirs in zip([*first, *model.body.blocks, *last], plain.layers, strict=True):
        for their_name, name in HUGGING_FACE:
            block.get_submodule(name).load_state_dict(theirs.get_submodule(their_name).state_dict())
    model.body.norm.load_state_dict(plain.layernorm.state_dict())
    pixels = torch.randint(0, 256, (2, 8, 8, 3))
    with torch.no_grad():
        ours = model.encode("a", inputs=pixels, input_lengths=torch.tensor([8, 8]))
        scaled = pixels.movedim(-1, 1) / 127.5 - 1
        assert_close(ours.values_BSD, plain(scaled).last_hidden_state, atol=1e-5, rtol=0)


def test_patches_in_another_order_with_their_positions_give_the_same_class_token():
    model = tiny_polyvit(num_adapter_blocks=1).eval()
    arguments = example("digit")
    order = torch.tensor([3, 0, 5, 1, 4, 2])  # of 2 x 3 patches of 4 x 4 pixels
    patches = arguments["inputs"].unflatten(1, (2, 4)).unflatten(3, (3, 4)).transpose(2, 3)
    moved = patches.flatten(1, 2)[:, order].unflatten(1, (2, 3)).transpose(2, 3)
    again = {**arguments, "inputs": moved.flatten(3, 4).flatten(1, 2)}
    with torch.no_grad():
        first = model.encode("digit", **arguments).values_BSD
        positions = model.stems["image_patches"].tokens.positions
        positions[1:] = positions[1:][order].clone()
        second = model.encode("digit", **again).values_BSD
    assert_close(second[:, 0], first[:, 0], atol=1e-5, rtol=0)
    assert_close(second[:, 1:], first[:, 1:][:, order], atol=1e-5, rtol=0)


def test_depth_rises_over_all_blocks_or_starts_again_as_released():
    sizes = {"num_layers": 5, "num_adapter_blocks": 3}
    whole, restart = Config(**sizes), Config(**sizes, drop_ramp="restart")
    assert [depth_of(whole, place) for place in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert [depth_of(restart, place) for place in range(5)] == [0, 0.5, 1, 0.75, 1]
    assert depth_of(Config(num_layers=1), 0) == 0
    model = tiny_polyvit(num_adapter_blocks=2)
    blocks = [*model.adapters["audio_patches"].blocks, *model.body.blocks]
    assert [block.depth for block in blocks] == [0, 1 / 3, 2 / 3, 1]
    model = tiny_polyvit(num_adapter_blocks=1, num_adapter_blocks_after=2)
    own = model.adapters["audio_patches"]
    blocks = [*own.blocks, *model.body.blocks, *own.blocks_after]
    assert [block.depth for block in blocks] == [0, 1 / 3, 2 / 3, 1]


def test_stochastic_depth_is_the_tasks_own_and_off_in_eval():
    model = tiny_polyvit(num_adapter_blocks=1)

    def twice(task: str) -> bool:
        runs = [model(task=task, **example(task), targets=None).logits for _ in range(2)]
        return torch.equal(*runs)

    with torch.no_grad():
        torch.manual_seed(0)
        assert twice("digit")
        assert not twice("word")
        model.eval()
        assert twice("word")


def test_examples_are_dropped_one_by_one():
    model = tiny_polyvit()
    arguments = {
        name: values[:1].repeat_interleave(32, 0) for name, values in example("word").items()
    }
    torch.manual_seed(0)
    with torch.no_grad():
        logits = model(task="word", **arguments, targets=None).logits
    assert len(logits.unique(dim=0)) > 8


@pytest.mark.parametrize("sequence", ["clip", "frame"])
def test_clips_come_out_as_one_vector_each(sequence):
    model = tiny_polyvit(sequence=sequence, num_adapter_blocks=2).eval()
    with torch.no_grad():
        encoded = model.encode("motion", **example("motion"))
        logits = model(task="motion", **example("motion"), targets=None).logits
    assert encoded.values_BSD.shape == (2, 1 + (4 if sequence == "frame" else 8), 16)
    assert encoded.mask_BS.shape == encoded.values_BSD.shape[:2]
    assert encoded.frames == 1
    assert logits.shape == (2, 8)


def test_frame_by_frame_outputs_are_the_mean_of_those_of_the_moments():
    model = tiny_polyvit(sequence="frame").eval()
    arguments = example("motion")
    with torch.no_grad():
        both = model.encode("motion", **arguments).values_BSD
        moments = []
        for moment in (slice(0, 2), slice(2, 4)):  # a still clip has one moment, twice
            still = arguments["inputs"][:, moment].repeat(1, 2, 1, 1, 1)
            moments.append(model.encode("motion", **{**arguments, "inputs": still}).values_BSD)
    assert_close(both, (moments[0] + moments[1]) / 2, atol=1e-5, rtol=0)


def test_padding_of_a_text_changes_nothing():
    model = tiny_polyvit(experts="every_second", gate_noise="none").eval()
    arguments = example("language")
    with torch.no_grad():
        both = model(task="language", **arguments, targets=None).logits
        short = {"inputs": arguments["inputs"][1:, :4], "input_lengths": torch.tensor([4])}
        alone = model(task="language", **short, targets=None).logits
        encoded = model.encode("language", **arguments)
    assert_close(alone, both[1:], atol=1e-5, rtol=0)
    assert encoded.values_BSD[1, 5:].abs().sum() == 0


def test_blocks_of_a_modality_behind_the_shared_ones_have_no_experts():
    sizes = {"num_layers": 6, "num_adapter_blocks": 1, "num_adapter_blocks_after": 1}
    model = tiny_polyvit(**sizes, experts="every_second")
    own = model.adapters["image_patches"]
    blocks = [*own.blocks, *model.body.blocks, *own.blocks_after]
    assert [block.moe is not None for block in blocks] == [False, True, False, True, False, False]


def test_every_second_shared_block_has_experts_which_learn():
    model = tiny_polyvit(num_adapter_blocks=1, num_layers=5, experts="every_second")
    adapters = model.adapters["image_patches"].blocks
    assert [block.moe is not None for block in adapters] == [False]
    assert [block.moe is not None for block in model.body.blocks] == [True, False, True, False]
    assert "experts/blocks" in model.owners("digit")
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    torch.manual_seed(0)
    losses = []
    for _ in range(40):
        outputs = model(task="digit", **example("digit", batch=8), targets=None)
        loss = torch.nn.functional.cross_entropy(outputs.logits, torch.arange(8))
        (loss + outputs.auxiliary_loss).backward()
        adam.step()
        adam.zero_grad()
        losses.append(float(loss.detach()))
    assert outputs.auxiliary_loss > 0
    assert {layer: int(counts.sum()) for layer, counts in outputs.routing.items()} == {
        "block1": 8 * 7 * 2,
        "block3": 8 * 7 * 2,
    }
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("experts", ["none", "every_second"])
def test_blocks_computed_again_in_backward_give_the_same_gradients(experts):
    settings = {"num_adapter_blocks": 1, "drop_prob": 0.2, "attention_drop_prob": 0.2}
    settings["num_adapter_blocks_after"] = 1
    gradients = []
    for recomputes in (False, True):
        model = tiny_polyvit(experts=experts, **settings)
        calls = []
        if recomputes:
            recompute_blocks(model)
        own = model.adapters["audio_patches"]
        for block in (*own.blocks, *model.body.blocks, *own.blocks_after):
            block.attention.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(0)
        outputs = model(task="word", **example("word", batch=6), targets=None)
        (outputs.logits.square().mean() + outputs.auxiliary_loss).backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
        assert len(calls) == (8 if recomputes else 4)
    for name, gradient in gradients[0].items():
        again = gradients[1][name]
        assert (gradient is None) == (again is None), name
        if gradient is not None:
            assert torch.equal(gradient, again), name


def test_the_model_computes_in_bf16():
    model = tiny_polyvit(num_adapter_blocks=1, experts="every_second").bfloat16()
    for task in NETS:
        logits = model(task=task, **example(task), targets=None).logits
        assert logits.dtype == torch.bfloat16
        assert logits.isfinite().all()


def test_a_config_survives_json():
    config = tiny_config(num_adapter_blocks=2, experts="every_second")
    assert isinstance(config.body, Config)
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config


def test_a_task_that_is_decoded_is_refused_with_what_to_use():
    decoded = TaskSpec(
        name="caption",
        input_net="image_patches",
        output_net=net_of("polyvit", TextFeature()),
        command_id=3,
    )
    with pytest.raises(ModelError, match="caption: family 'polyvit' decodes no sequences; use"):
        build_model(tiny_config(), [decoded], seed=0)


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(BodyError, match="num_heads 3 does not divide model_dim 16"):
        tiny_polyvit(num_heads=3)
    with pytest.raises(BodyError, match=r"num_adapter_blocks 2 and .*_after 3 are more"):
        tiny_polyvit(num_adapter_blocks=2, num_adapter_blocks_after=3)
    short = {"video_tubelets": video_tubelets.Config(num_frames=3, height=16, width=16, channels=3)}
    with pytest.raises(InputSizeError, match="3 frames are fewer than the 4 of a patch"):
        build_model(
            ModelConfig(family="polyvit", body=Config(), nets=short),
            [spec("a", "video_tubelets", 2)],
            seed=0,
        )
