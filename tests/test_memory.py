"""What is counted of the activations, and that counting changes nothing."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from support.tiny_models import tiny_gpt_neox
from utils.training.memory import activation_megabytes

LENGTH = 24


def batch(rows: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 90, (rows, LENGTH), generator=torch.manual_seed(0))
    return {"input_ids": ids, "labels": ids}


def tuned(layers: int = 2):
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(tiny_gpt_neox(layers=layers), lora).train()


@pytest.fixture
def model():
    return tuned()


def test_it_grows_with_the_rows(model) -> None:
    four, two = (activation_megabytes(model, batch(rows))[0] for rows in (4, 2))
    assert 1.8 < four / two < 2.2


def test_a_single_layer_keeps_its_input_and_its_loss(monkeypatch) -> None:
    """Counted by hand: x for the weight's gradient, and what the loss needs."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(5, 3, bias=False)

        def forward(self, x, labels, use_cache):
            out = self.layer(x)
            return type("Output", (), {"loss": (out * labels).sum()})

    x, labels = torch.randn(7, 5), torch.randn(7, 3)
    counted, gradient = activation_megabytes(Model(), {"x": x, "labels": labels})
    assert counted * 1e6 == pytest.approx(4 * (x.numel() + labels.numel()))
    assert torch.allclose(gradient.view(3, 5), labels.T @ x, atol=1e-6)


def test_checkpointing_keeps_the_inputs_of_blocks_and_the_same_gradient(model) -> None:
    rows = batch(4)
    whole, expected = activation_megabytes(model, rows)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    kept, gradient = activation_megabytes(model, rows)
    hidden, blocks = model.config.hidden_size, model.config.num_hidden_layers
    assert 4 * blocks * rows["labels"].numel() * hidden / 1e6 < kept < 0.7 * whole
    assert torch.allclose(gradient, expected, atol=1e-5)


def test_with_checkpointing_each_block_adds_its_input() -> None:
    rows, counted = batch(4), {}
    for layers in (2, 5):
        model = tuned(layers)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        counted[layers], _ = activation_megabytes(model, rows)
    one = 4 * rows["labels"].numel() * model.config.hidden_size / 1e6
    assert counted[5] - counted[2] == pytest.approx(3 * one, rel=0.01)


def test_no_gradient_is_left(model) -> None:
    activation_megabytes(model, batch(2))
    assert all(one.grad is None for one in model.parameters())
