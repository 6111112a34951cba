"""What transformers and PEFT make of one request alone: nothing is batched, cached in slots, or shared."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

from brain_server.engine.contract import LoadedAdapter
from brain_server.torch_engine.compute.grammar import Grammars
from brain_server.torch_engine.compute.sampler import Sampler, TextStream, pick
from brain_server.torch_engine.compute.sequences import ReplySequence
from mesh.adapters.ref import AdapterRef
from mesh.lm.base import BaseModel
from mesh.lm.chat import encode_prompt
from mesh.lm.lora import from_safetensors
from testing.load.churn import Asked, Heard, Kind
from testing.models.random_adapters import SPEC


class Isolated:
    """Decodes one request after the other, and remembers what it decoded."""

    def __init__(self, base: BaseModel, weights: Mapping[AdapterRef, bytes]) -> None:
        """Takes a copy of the base model in fp32, and the file of every version."""
        config = LoraConfig(r=SPEC.rank, lora_alpha=SPEC.alpha, target_modules=list(SPEC.target_modules))
        self._peft = get_peft_model(base.model, config).eval()
        self._tokenizer = base.tokenizer
        self._weights = weights
        self._loaded: AdapterRef | None = None
        assert isinstance(base.tokenizer.eos_token_id, int)
        assert isinstance(base.tokenizer.bos_token_id, int)
        self._stop_tokens = frozenset({base.tokenizer.eos_token_id, base.tokenizer.bos_token_id})
        vocabulary = int(base.model.config.vocab_size)
        self._grammars = Grammars(base.tokenizer, vocabulary=vocabulary, stop_tokens=self._stop_tokens)
        self._known: dict[tuple[Asked, AdapterRef | None], tuple[str, int]] = {}

    def reply(self, asked: Asked, ref: AdapterRef | None) -> tuple[str, int]:
        """The text and the number of its tokens, by a version or, without one, by the base model."""
        seed = asked.seed if asked.kind is Kind.SAMPLED else 0
        # Of the request, what the reply depends on.
        what = Asked(student_id=None, text=asked.text, kind=asked.kind, seed=seed)
        if (what, ref) not in self._known:
            with self._with_adapter(ref), torch.inference_mode():
                decode = self._greedy if asked.kind is Kind.GREEDY else self._step_by_step
                self._known[what, ref] = decode(what)
        return self._known[what, ref]

    def _greedy(self, asked: Asked) -> tuple[str, int]:
        """By transformers' own loop."""
        generation = asked.generation
        prompt = torch.tensor([encode_prompt(self._tokenizer, generation.prompt)])
        # The stubs of transformers don't know that a causal language model has it.
        output = cast("Callable[..., torch.Tensor]", self._peft.generate)(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=generation.sampling.max_tokens,
            eos_token_id=list(self._stop_tokens),
            pad_token_id=self._tokenizer.pad_token_id,
        )
        tokens = [token for token in output[0, prompt.shape[1] :].tolist() if token not in self._stop_tokens]
        text = TextStream(self._tokenizer)
        return "".join(map(text.push, tokens)), len(tokens)

    def _step_by_step(self, asked: Asked) -> tuple[str, int]:
        """By whole passes over all that was said; what to pick from their logits is not what is tested here."""
        generation = asked.generation
        prompt = encode_prompt(self._tokenizer, generation.prompt)
        sampling = generation.sampling
        task = ReplySequence(
            prompt,
            sampler=Sampler(temperature=sampling.temperature or 0, top_p=sampling.top_p or 1, seed=sampling.seed),
            max_tokens=sampling.max_tokens or 1,
            stop_tokens=self._stop_tokens,
            text=TextStream(self._tokenizer),
            constraint=self._grammars.constraint(generation.json_schema) if generation.json_schema else None,
        )
        read: Sequence[int] = []
        while not task.is_finished:
            read = [*read, *task.next_tokens]
            logits_1V = self._peft(torch.tensor([read])).logits[:, -1].float()
            task.mask(logits_1V[0])
            (token,) = pick(logits_1V, [task.sampler])
            assert token is not None
            task.accept(token)
        return "".join(task.pieces), task.token_count

    @contextmanager
    def _with_adapter(self, ref: AdapterRef | None) -> Iterator[None]:
        if ref is None:
            with self._peft.disable_adapter():
                yield
            return
        if ref != self._loaded:
            set_peft_model_state_dict(self._peft, from_safetensors(self._weights[ref]))
            self._loaded = ref
        yield


def mismatches(heard: Sequence[Heard], isolated: Isolated, *, adapters: Mapping[LoadedAdapter, bytes]) -> list[str]:
    """All that was heard and may not have been: one line each, empty if every word was right.

    A reply must be, to the last token, what the version and the bytes that it names make of the request alone, and that
    version must have been an active one. What was heard of a reply that did not come to its end must be its beginning.
    """
    refs = {identity.ref.student_id: identity.ref for identity in adapters}
    found = []
    # By student, so that the reference changes its adapter rarely.
    for one in sorted(heard, key=lambda one: one.asked.student_id or ""):
        student_id, text = one.asked.student_id, "".join(one.pieces)
        versions = (
            [replace(refs[student_id], version=version) for version in sorted(one.versions)] if student_id else [None]
        )
        if one.reply is None:
            if text and not any(isolated.reply(one.asked, ref)[0].startswith(text) for ref in versions):
                found.append(f"{one.asked} began {text!r}, which no version of {one.versions} says")
            continue
        named = one.reply.adapter
        if (named is not None and named not in adapters) or (named.ref if named else None) not in versions:
            found.append(f"{one.asked} was answered by {named}, and {one.versions} were active")
            continue
        expected = isolated.reply(one.asked, named.ref if named else None)
        if (one.reply.text, one.reply.completion_tokens) != expected or text != one.reply.text:
            found.append(f"{one.asked} by {named} said {one.reply.text!r} and not {expected}")
    return found
