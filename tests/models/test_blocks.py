"""The pieces of the networks: batch norm is PyTorch's, whatever the channels and their order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from notan.models.blocks import BatchNorm2d

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def drawn(channels: int, layout: torch.memory_format) -> Tensor:
    values = torch.randn(3, channels, 5, 7, generator=torch.Generator().manual_seed(channels))
    return (values * 3 + 1).contiguous(memory_format=layout)


def learn(norm: nn.BatchNorm2d, inputs: Tensor) -> dict[str, Tensor]:
    """Return all that a step of training makes: output, gradients and statistics."""
    inputs = inputs.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    output = norm(inputs)
    (output * torch.arange(output.numel()).view_as(output).cos()).sum().backward()
    gradients = {name: weight.grad for name, weight in norm.named_parameters()}
    made = {"output": output, "input": inputs.grad, **gradients, **dict(norm.named_buffers())}
    return {name: tensor for name, tensor in made.items() if tensor is not None}


@pytest.mark.parametrize("channels", [1, 8, 15, 16, 40])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_of_training_is_that_of_pytorchs(channels: int, layout: torch.memory_format) -> None:
    ours, theirs = BatchNorm2d(channels), nn.BatchNorm2d(channels)
    found = learn(ours, drawn(channels, layout))
    assert len(found) == 7
    for name, wanted in learn(theirs, drawn(channels, layout)).items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [8, 16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_answer_is_pytorchs_to_the_bit_and_keeps_the_order_of_the_channels(
    channels: int, layout: torch.memory_format
) -> None:
    ours, theirs = BatchNorm2d(channels), nn.BatchNorm2d(channels)
    learn(ours, drawn(channels, layout))
    theirs.load_state_dict(ours.state_dict())
    answer = ours.eval()(drawn(channels, layout))
    assert torch.equal(answer, theirs.eval()(drawn(channels, layout)))
    assert answer.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(("channels", "turned"), [(15, True), (16, False)])
def test_few_channels_are_put_first_while_training(channels: int, turned: bool) -> None:
    output = BatchNorm2d(channels)(drawn(channels, torch.channels_last))
    assert output.is_contiguous() == turned
