"""What transformers and PEFT reply to one request at a time: nothing is batched, cached in slots, or shared."""

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
from mesh.lm.chat import encode_prompt
from mesh.lm.lora import from_safetensors
from mesh.main_brain.base import BaseModel
from testing.load.churn import ChurnRequest, ReplyKind, ReplyRecord
from testing.models.random_adapters import SPEC


class IsolatedDecoder:
    """Decodes one request after the other, and remembers the replies."""

    def __init__(self, base: BaseModel, weights: Mapping[AdapterRef, bytes]) -> None:
        """Prepares the base model for adapters.

        Args:
            base: A copy of the base model in fp32, which this changes.
            weights: The weight file of every version.
        """
        config = LoraConfig(r=SPEC.rank, lora_alpha=SPEC.alpha, target_modules=list(SPEC.target_modules))
        self._peft = get_peft_model(base.model, config).eval()
        self._tokenizer = base.tokenizer
        self._weights = weights
        self._active_ref: AdapterRef | None = None
        assert isinstance(base.tokenizer.eos_token_id, int)
        assert isinstance(base.tokenizer.bos_token_id, int)
        self._stop_tokens = frozenset({base.tokenizer.eos_token_id, base.tokenizer.bos_token_id})
        vocabulary = int(base.model.config.vocab_size)
        self._grammars = Grammars(base.tokenizer, vocabulary=vocabulary, stop_tokens=self._stop_tokens)
        self._replies: dict[tuple[ChurnRequest, AdapterRef | None], tuple[str, int]] = {}

    def reply(self, request: ChurnRequest, ref: AdapterRef | None) -> tuple[str, int]:
        """Returns the text and the number of its tokens, decoded with a version or, without one, by the base model."""
        seed = request.seed if request.kind is ReplyKind.SAMPLED else 0
        # The part of the request that the reply depends on.
        relevant_request = ChurnRequest(student_id=None, text=request.text, kind=request.kind, seed=seed)
        if (relevant_request, ref) not in self._replies:
            with self._with_adapter(ref), torch.inference_mode():
                decode = self._decode_greedily if request.kind is ReplyKind.GREEDY else self._decode_step_by_step
                self._replies[relevant_request, ref] = decode(relevant_request)
        return self._replies[relevant_request, ref]

    def _decode_greedily(self, request: ChurnRequest) -> tuple[str, int]:
        """By transformers' own loop."""
        generation = request.generation
        prompt = torch.tensor([encode_prompt(self._tokenizer, generation.prompt)])
        # The stubs of transformers lack `generate` for causal language models.
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

    def _decode_step_by_step(self, request: ChurnRequest) -> tuple[str, int]:
        """By a pass over the whole text per token. Picking from the logits is the product's: it is not tested here."""
        generation = request.generation
        prompt = encode_prompt(self._tokenizer, generation.prompt)
        sampling = generation.sampling
        sequence = ReplySequence(
            prompt,
            sampler=Sampler(temperature=sampling.temperature or 0, top_p=sampling.top_p or 1, seed=sampling.seed),
            max_tokens=sampling.max_tokens or 1,
            stop_tokens=self._stop_tokens,
            text=TextStream(self._tokenizer),
            constraint=self._grammars.constraint(generation.json_schema) if generation.json_schema else None,
        )
        tokens: Sequence[int] = []
        while not sequence.is_finished:
            tokens = [*tokens, *sequence.next_tokens]
            logits_1V = self._peft(torch.tensor([tokens])).logits[:, -1].float()
            sequence.mask(logits_1V[0])
            (token,) = pick(logits_1V, [sequence.sampler])
            assert token is not None
            sequence.accept(token)
        return "".join(sequence.pieces), sequence.token_count

    @contextmanager
    def _with_adapter(self, ref: AdapterRef | None) -> Iterator[None]:
        if ref is None:
            with self._peft.disable_adapter():
                yield
            return
        if ref != self._active_ref:
            set_peft_model_state_dict(self._peft, from_safetensors(self._weights[ref]))
            self._active_ref = ref
        yield


def mismatches(
    records: Sequence[ReplyRecord], decoder: IsolatedDecoder, *, adapters: Mapping[LoadedAdapter, bytes]
) -> list[str]:
    """Returns a line for each record that is wrong; none if every token is right.

    A reply must be, to the last token, what the version and the bytes that it names decode for the request alone, and
    that version must have been an active one. What a caller received of a reply that did not end must be its beginning.
    """
    refs = {identity.ref.student_id: identity.ref for identity in adapters}
    lines = []
    # By student, so that the reference rarely changes its adapter.
    for record in sorted(records, key=lambda record: record.request.student_id or ""):
        request, reply, text = record.request, record.reply, "".join(record.pieces)
        versions: list[AdapterRef | None] = [None]
        if request.student_id:
            versions = [replace(refs[request.student_id], version=version) for version in sorted(record.versions)]
        if reply is None:
            if text and not any(decoder.reply(request, ref)[0].startswith(text) for ref in versions):
                lines.append(f"{request} began with {text!r}, unlike every version of {record.versions}")
            continue
        ref = reply.adapter.ref if reply.adapter else None
        if (reply.adapter is not None and reply.adapter not in adapters) or ref not in versions:
            lines.append(f"{request} was answered by {reply.adapter}, but {record.versions} were active")
            continue
        reference = decoder.reply(request, ref)
        if (reply.text, reply.completion_tokens) != reference or text != reply.text:
            lines.append(f"{request} by {reply.adapter} is {reply.text!r}, which should be {reference}")
    return lines
