"""How well a model says the tutor's replies: the loss on reply tokens, over batches of examples.

Rows are padded on the left, so all replies end in the last column and logits are computed for the columns of the
longest reply alone: at a vocabulary of 49,152 the output layer is a fifth of a 135M model.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mesh.lm.chat import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Examples side by side. B rows, T tokens of the longest example, R of the longest reply.

    Attributes:
        tokens_BT: Left-padded.
        attention_BT: 1 where a token is no padding.
        positions_BT: Of each token in its row, from 0.
        in_reply_BR: Whether each of the last R tokens belongs to the row's reply, its end token included.
    """

    tokens_BT: Tensor
    attention_BT: Tensor
    positions_BT: Tensor
    in_reply_BR: Tensor

    @property
    def reply_tokens(self) -> int:
        """Tokens that the loss is over."""
        return int(self.in_reply_BR.sum())


def batches_of(examples: Sequence[Example], size: int, *, device: torch.device) -> list[Batch]:
    """Batches of examples of like length, so that little is padded; the last may be smaller."""
    ordered = sorted(examples, key=lambda example: (len(example.tokens), example.tokens))
    return [_collate(ordered[start : start + size], device) for start in range(0, len(ordered), size)]


def reply_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean nats a reply token, a scalar with gradients."""
    logits_nv, targets_n = reply_logits(model, batch)
    return functional.cross_entropy(logits_nv, targets_n)


def heldout_loss(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Mean nats a reply token over all batches."""
    nats, tokens = 0.0, 0
    with torch.inference_mode():
        for batch in batches:
            nats += float(reply_loss(model, batch)) * batch.reply_tokens
            tokens += batch.reply_tokens
    return nats / tokens


def reply_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits of every reply token, [N, vocabulary] in fp32, and the tokens themselves, [N]."""
    width = batch.in_reply_BR.shape[1]
    logits_brv = model(
        input_ids=batch.tokens_BT,
        attention_mask=batch.attention_BT,
        position_ids=batch.positions_BT,
        use_cache=False,
        logits_to_keep=width + 1,
    ).logits[:, :-1]
    # The logits at a token are of the next one: those of the last token are of nothing.
    return logits_brv[batch.in_reply_BR].float(), batch.tokens_BT[:, -width:][batch.in_reply_BR]


def _collate(examples: Sequence[Example], device: torch.device) -> Batch:
    longest = max(len(example.tokens) for example in examples)
    replies = [len(example.tokens) - example.reply_start for example in examples]
    pads = [longest - len(example.tokens) for example in examples]
    attention_bt = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads], device=device)
    return Batch(
        tokens_BT=torch.tensor(
            [[0] * pad + list(example.tokens) for pad, example in zip(pads, examples, strict=True)], device=device
        ),
        attention_BT=attention_bt,
        positions_BT=(attention_bt.cumsum(dim=1) - 1).clamp(min=0),
        in_reply_BR=torch.tensor(
            [[False] * (max(replies) - reply) + [True] * reply for reply in replies], device=device
        ),
    )
