from math import exp

import pytest
import torch

from mmtrain.losses.balancing import add_log_variances, uncertain_loss, without_log_variances
from mmtrain.modalities import image
from mmtrain.models import multimodel
from mmtrain.models.model import ModelConfig, MultiTaskModel, TaskSpec, build_model


@pytest.fixture
def model() -> MultiTaskModel:
    body = multimodel.Config(
        model_dim=16, num_heads=2, encoder_conv_blocks=1, encoder_attention_blocks=1,
        mixer_blocks=1, decoder_blocks=1, num_experts=2, active_experts=1, expert_dim=8,
    )  # fmt: skip
    tasks = [
        TaskSpec(name="digit", input_net="image", output_net="label", num_outputs=10),
        TaskSpec(name="box", input_net="image", output_net="label", num_outputs=4,
                 loss="squared_error"),
        TaskSpec(name="copy", input_net="text", output_net="text", command_id=3),
    ]  # fmt: skip
    built = build_model(
        ModelConfig(body=body, nets={"image": image.Config(channels=1)}, vocab_size=50),
        tasks,
        seed=0,
    )
    add_log_variances(built)
    return built


def test_a_variance_of_one_leaves_the_loss_as_it_is(model):
    loss = torch.tensor(3.0)
    assert uncertain_loss(loss, model=model, task="digit", parts=2).item() == 3.0
    assert uncertain_loss(loss, model=model, task="box", parts=2).item() == 1.5


def test_shares_of_a_loss_sum_to_the_weighed_loss(model):
    with torch.no_grad():
        model.log_variances["of_digit"].fill_(0.4)
    shares = [
        uncertain_loss(torch.tensor(loss), model=model, task="digit", parts=2)
        for loss in (1.0, 2.0)
    ]
    assert sum(share.item() for share in shares) == pytest.approx(3 * exp(-0.4) + 0.2)


def test_the_variance_learns_to_be_twice_the_loss(model):
    log_variance = model.log_variances["of_digit"]
    sgd = torch.optim.SGD([log_variance], lr=0.5)
    for _ in range(200):
        sgd.zero_grad()
        uncertain_loss(torch.tensor(0.7), model=model, task="digit", parts=1).backward()
        sgd.step()
    assert log_variance.exp().item() == pytest.approx(1.4, rel=1e-3)  # where the derivative is 0


def test_a_variance_is_owned_by_its_task_alone(model):
    assert model.parameter_owner("log_variances.of_copy") == "task/copy"
    owners = {task: model.owners(task) for task in model.tasks}
    assert "task/copy" in owners["copy"]
    assert "task/copy" not in owners["digit"] | owners["box"]


def test_a_trained_model_has_no_variances(model):
    weights = without_log_variances(model.state_dict())
    assert len(model.state_dict()) - len(weights) == 3
    assert not any("log_variances" in name for name in weights)
