import pytest
import torch

from mesh.errors import AdapterCorrupt
from mesh.lm.lora import from_safetensors, to_safetensors


def test_what_is_saved_is_what_is_loaded_whatever_the_order() -> None:
    state = {f"m.{n}.lora_{factor}.weight": torch.randn(4, 4) for n in range(3) for factor in "AB"}
    content = to_safetensors(state)
    assert content == to_safetensors(dict(reversed(state.items())))
    loaded = from_safetensors(content)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04.",
        to_safetensors({"a.lora_A.weight": torch.tensor([[1.0, float("nan")]])}),
        to_safetensors({"a.lora_A.weight": torch.tensor([[float("inf")]])}),
        to_safetensors({"a.lora_A.weight": torch.tensor([[1]])}),
    ],
)
def test_bytes_that_are_no_sound_adapter_are_refused(content: bytes) -> None:
    with pytest.raises(AdapterCorrupt):
        from_safetensors(content)
