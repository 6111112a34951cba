"""What a role learns: the words of a reply, or one of a few labels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cloning_server.compute.kernels import token_nats_and_gradient
from curriculum.train.training import RoleExample


class ReplyObjective:
    """Every token of the reply, end token included.

    Args:
        head_VH: The base model's output matrix.
    """

    def __init__(self, head_VH: Tensor) -> None:
        self._head_VH = head_VH

    def scored(self, examples: Sequence[RoleExample]) -> list[range]:
        """See `Objective.scored`."""
        return [range(member.example.reply_start - 1, len(member.example.tokens) - 1) for member in examples]

    def size(self, examples: Sequence[RoleExample]) -> int:
        """See `Objective.size`."""
        return sum(map(len, self.scored(examples)))

    def loss(self, examples: Sequence[RoleExample], x_SH: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """See `Objective.loss`."""
        tokens = [token for member in examples for token in member.example.tokens[member.example.reply_start :]]
        targets_S = torch.tensor(tokens, device=x_SH.device)
        shares_S = torch.full((len(tokens),), share, device=x_SH.device)
        return token_nats_and_gradient(x_SH, self._head_VH, targets_S, shares_S)


class LabelObjective:
    """Which of a few labels the reply begins with; only the first token of each counts, and only among them.

    Args:
        head_VH: The base model's output matrix.
        label_tokens: The first token of each label.
        smoothing: Share of the target that is spread over all labels (Szegedy et al., 2016).
    """

    def __init__(self, head_VH: Tensor, label_tokens: Sequence[int], *, smoothing: float) -> None:
        self._head_LH = head_VH[list(label_tokens)]
        self._smoothing = smoothing

    def scored(self, examples: Sequence[RoleExample]) -> list[range]:
        """See `Objective.scored`."""
        return [range(member.example.reply_start - 1, member.example.reply_start) for member in examples]

    def size(self, examples: Sequence[RoleExample]) -> int:
        """See `Objective.size`."""
        return len(examples)

    def loss(self, examples: Sequence[RoleExample], x_SH: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """See `Objective.loss`."""
        labels_S = torch.tensor([member.label for member in examples], device=x_SH.device)
        count = len(self._head_LH)
        target_SL = F.one_hot(labels_S, count) * (1 - self._smoothing) + self._smoothing / count
        logprobs_SL = F.log_softmax(F.linear(x_SH, self._head_LH).float(), dim=-1)
        error_SL = (logprobs_SL.exp() - target_SL) * share
        return -(target_SL * logprobs_SL).sum(-1), error_SL.to(x_SH.dtype) @ self._head_LH
