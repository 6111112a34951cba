"""What the vLLM engine knows of the base model without its weights: tokens, what ends a reply, labels, shapes.

All of it blocks, the reading for some seconds. Knows nothing of HTTP, students or event loops.
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
from mesh.lm.weights import BaseModelFiles, fetch
from mesh.settings import BaseModelSettings


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VllmModel:
    """A base model that vLLM has loaded, as seen from here.

    Attributes:
        files: Of the same base model on this machine; their digest is what adapters must have been trained on.
        tokenizer: Its own.
        stop_tokens: What ends a reply, beside vLLM's own: the end of the tutor's turn, and what begins another.
        shapes: Of its matrices [out, in], by their names.
    """

    files: BaseModelFiles
    tokenizer: PreTrainedTokenizerBase
    stop_tokens: tuple[int, ...]
    shapes: Mapping[str, tuple[int, int]]

    @classmethod
    def read(cls, settings: BaseModelSettings) -> Self:
        """Reads what is needed of the files, fetching them first if need be.

        Raises:
            BaseModelUnavailable: If they can't be had or read.
        """
        files = fetch(settings.base_model, settings.model_cache_dir)
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(files.path, local_files_only=True)
            stop_tokens = _stop_tokens(files, tokenizer)
            shapes = weight_shapes(files.path)
        except (OSError, ValueError) as error:
            raise BaseModelUnavailable(f"{files.name} could not be read: {error}") from error
        if not tokenizer.chat_template:
            raise BaseModelUnavailable(f"{files.name}: its tokenizer has no chat template")
        return cls(files=files, tokenizer=tokenizer, stop_tokens=stop_tokens, shapes=shapes)

    def encode(self, prompt: Prompt, *, room: int) -> tuple[int, ...]:
        """The prompt in tokens.

        Raises:
            InvalidField: It has more than `room`.
        """
        tokens = encode_prompt(self.tokenizer, prompt)
        if len(tokens) > room:
            description = f"has {len(tokens)} tokens with instructions and history; at most {room} fit the model"
            raise InvalidField([Violation("prompt", description)])
        return tuple(tokens)

    def branches(self, labels: Sequence[str]) -> "Branches":
        """The tokens of labels that a reply may begin with."""
        return Branches(
            {label: tuple(self.tokenizer(label, add_special_tokens=False)["input_ids"]) for label in labels}
        )


class Branches:
    """Labels as paths through a tree of tokens: to weigh them all, each fork is looked at once.

    A label's weight is the product of its tokens' probabilities; no label should begin with another, as both would be
    counted.
    """

    def __init__(self, labels: Mapping[str, Sequence[int]]) -> None:
        """Takes the labels' token ids, at least one each."""
        self._labels = {label: tuple(tokens) for label, tokens in labels.items()}
        ways: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
        for tokens in self._labels.values():
            for place, token in enumerate(tokens):
                ways[tokens[:place]].add(token)
        self._ways = dict(ways)

    @property
    def forks(self) -> list[tuple[int, ...]]:
        """The beginnings of labels after which another token of one follows; the empty one among them."""
        return list(self._ways)

    @property
    def tokens(self) -> list[int]:
        """All tokens of all labels, without repeats."""
        return sorted(set().union(*self._ways.values()))

    def weigh(self, logs: Sequence[Mapping[int, float]]) -> dict[str, float]:
        """How likely each label is rather than another; adds up to 1.

        Args:
            logs: For each of `forks`, the log-probability of the tokens that may follow.
        """
        at = dict(zip(self._ways, logs, strict=True))
        scores = {
            label: math.fsum(at[tokens[:place]][token] for place, token in enumerate(tokens))
            for label, tokens in self._labels.items()
        }
        top = max(scores.values())
        weights = {label: math.exp(score - top) for label, score in scores.items()}
        total = math.fsum(weights.values())
        return {label: weight / total for label, weight in weights.items()}


def _stop_tokens(files: BaseModelFiles, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    config = AutoConfig.from_pretrained(files.path, local_files_only=True)
    named = [config.eos_token_id, tokenizer.bos_token_id]
    if (files.path / "generation_config.json").is_file():
        named.append(GenerationConfig.from_pretrained(files.path, local_files_only=True).eos_token_id)
    found = {end_of_turn(tokenizer)}
    for one in named:
        found.update(one if isinstance(one, Iterable) else [] if one is None else [one])
    return tuple(sorted(found))
