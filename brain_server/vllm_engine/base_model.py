"""What the vLLM engine knows of the base model: its tokenizer, the tokens that end a reply, its matrices' shapes.

All calls block; `VllmModel.read` takes seconds. Knows nothing of HTTP, students or event loops.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from brain_server.vllm_engine.adapter_folders import weight_shapes
from mesh.errors import BaseModelUnavailable, InvalidField, Violation
from mesh.lm.chat import Prompt, encode_prompt, end_of_turn
from mesh.main_brain.files import MainBrainFiles, fetch_main_brain
from mesh.main_brain.roles import roles_folders
from mesh.settings import BaseModelSettings


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VllmModel:
    """A base model that vLLM has loaded, without its weights.

    Attributes:
        files: The Main Brain's files on this machine, which vLLM serves; adapters must belong to the same digest.
        tokenizer: Its tokenizer.
        stop_tokens: Tokens that end a reply, beside those that vLLM knows: the end of the tutor's turn, and the
            beginning of another.
        shapes: Shapes of its matrices [out, in], by name.
    """

    files: MainBrainFiles
    tokenizer: PreTrainedTokenizerBase
    stop_tokens: tuple[int, ...]
    shapes: Mapping[str, tuple[int, int]]

    @classmethod
    def read(cls, settings: BaseModelSettings) -> Self:
        """Reads the files, and downloads them first if they are missing.

        Raises:
            BaseModelUnavailable: If the files can't be downloaded or read.
        """
        files = fetch_main_brain(settings.base_model, settings.model_cache_dir, roles_folders(settings.roles_dir))
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(files.path, local_files_only=True)
            stop_tokens = _stop_tokens(files, tokenizer)
            shapes = weight_shapes(files.path)
        except (OSError, ValueError) as error:
            raise BaseModelUnavailable(f"{files.name} could not be read: {error}") from error
        if not tokenizer.chat_template:
            raise BaseModelUnavailable(
                f"{files.name}: its tokenizer has no chat template; choose an instruction-tuned base model"
            )
        return cls(files=files, tokenizer=tokenizer, stop_tokens=stop_tokens, shapes=shapes)

    def encode(self, prompt: Prompt, *, room: int) -> tuple[int, ...]:
        """Returns the prompt's token ids.

        Raises:
            InvalidField: There are more than `room`.
        """
        tokens = encode_prompt(self.tokenizer, prompt)
        if len(tokens) > room:
            description = f"has {len(tokens)} tokens with instructions and history; at most {room} fit the model"
            raise InvalidField([Violation("prompt", description)])
        return tuple(tokens)

    def branches(self, labels: Sequence[str], *, by_first_token: bool = False) -> "Branches":
        """Returns the labels, which a reply may begin with, as token ids.

        Args:
            labels: No label begins with another.
            by_first_token: Only the first token of each label, if these differ. Roles learn labels this way.
        """
        tokens = {label: tuple(self.tokenizer(label, add_special_tokens=False)["input_ids"]) for label in labels}
        first_tokens = {label: label_tokens[:1] for label, label_tokens in tokens.items()}
        first_tokens_differ = len(set(first_tokens.values())) == len(labels)
        return Branches(first_tokens if by_first_token and first_tokens_differ else tokens)


class Branches:
    """Labels as paths through a tree of tokens, so that all are weighed with one query per fork.

    A label's weight is the product of its tokens' probabilities. No label may be a prefix of another: a reply that
    begins with the longer one would count for both.
    """

    def __init__(self, labels: Mapping[str, Sequence[int]]) -> None:
        """Takes the labels' token ids, at least one each."""
        self._labels = {label: tuple(tokens) for label, tokens in labels.items()}
        next_tokens: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
        for tokens in self._labels.values():
            for place, token in enumerate(tokens):
                next_tokens[tokens[:place]].add(token)
        self._next_tokens = dict(next_tokens)

    @property
    def forks(self) -> list[tuple[int, ...]]:
        """The prefixes of labels, the empty one among them, after each of which a label goes on."""
        return list(self._next_tokens)

    @property
    def tokens(self) -> list[int]:
        """All tokens of all labels, without duplicates."""
        return sorted(set().union(*self._next_tokens.values()))

    def weigh(self, logs: Sequence[Mapping[int, float]]) -> dict[str, float]:
        """Returns how likely each label is, relative to the others; the probabilities add up to 1.

        Args:
            logs: For each of `forks`, the log-probabilities of the next tokens.
        """
        logs_at = dict(zip(self._next_tokens, logs, strict=True))
        scores = {
            label: math.fsum(logs_at[tokens[:place]][token] for place, token in enumerate(tokens))
            for label, tokens in self._labels.items()
        }
        top = max(scores.values())
        weights = {label: math.exp(score - top) for label, score in scores.items()}
        total = math.fsum(weights.values())
        return {label: weight / total for label, weight in weights.items()}


def _stop_tokens(files: MainBrainFiles, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    config = AutoConfig.from_pretrained(files.path, local_files_only=True)
    settings = [config.eos_token_id, tokenizer.bos_token_id]
    if (files.path / "generation_config.json").is_file():
        settings.append(GenerationConfig.from_pretrained(files.path, local_files_only=True).eos_token_id)
    tokens = {end_of_turn(tokenizer)}
    for setting in settings:
        tokens.update(setting if isinstance(setting, Iterable) else [] if setting is None else [setting])
    return tuple(sorted(tokens))
