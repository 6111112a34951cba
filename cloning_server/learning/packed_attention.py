"""What the tokens of packed examples see: prompts first, which are kept, then the replies to them.

Knows nothing of models, adapters or what tokens mean.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cloning_server.compute.kernels import ThreeBack, attend
from cloning_server.compute.layers import Seen
from cloning_server.learning.packing import Pack
from mesh.lm.llama_shape import Shape


class _Ragged:
    """Rows of several lengths: laid flat one after another, or each as long as the longest."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = lengths
        self.longest = max(lengths)
        places = [row * self.longest + place for row, length in enumerate(lengths) for place in range(length)]
        self._places_N = torch.tensor(places, dtype=torch.long, device=device)

    def fill(self, flat_NXD: Tensor) -> Tensor:
        """[rows, longest, ...]; what is not there is zero, as 0 times garbage may be NaN."""
        rows = len(self.lengths)
        filled = flat_NXD.new_zeros(rows * self.longest, *flat_NXD.shape[1:]).index_copy_(0, self._places_N, flat_NXD)
        rows_RLXD: Tensor = filled.unflatten(0, (rows, self.longest))
        return rows_RLXD

    def take(self, rows_RLXD: Tensor) -> Tensor:
        """What is there, flat."""
        return rows_RLXD.flatten(0, 1).index_select(0, self._places_N)


class PromptAttention:
    """In each pack what is shared sees itself, and each row sees what is shared and itself.

    Args:
        packs: Whose prompts are read.
        shape: Of the model.
        like: Any tensor of the dtype and on the device that it computes in.

    Attributes:
        kept: By layer, of each pack the keys and values that its replies see, [rows, kv heads, tokens, D] each.
    """

    def __init__(self, packs: Sequence[Pack], *, shape: Shape, like: Tensor) -> None:
        self.kept: list[list[tuple[Tensor, Tensor]]] = []
        self._packs = packs
        self._rows = [_Ragged(pack.prompt_lengths, like.device) for pack in packs]
        self._biases = [_prompt_biases(pack, shape, like) for pack in packs]

    def __call__(
        self, _layer: int, queries_NXD: Tensor, keys_NXD: Tensor, values_NXD: Tensor, /
    ) -> tuple[Tensor, None]:
        """See `Attention`; called once a layer, in their order."""
        sizes = [len(pack.prompts_N) for pack in self._packs]
        parts = (one.split(sizes) for one in (queries_NXD, keys_NXD, values_NXD))
        known = zip(self._packs, self._rows, self._biases, strict=True)
        attended, kept = [], []
        for (pack, rows, (shared_bias, rows_bias)), *numbers in zip(known, *parts, strict=True):
            (queries_1SXD, queries_RWXD), (keys_1SKD, keys_RWKD), (values_1SKD, values_RWKD) = (
                (one[: pack.shared].unsqueeze(0), rows.fill(one[pack.shared :])) for one in numbers
            )
            keys_1KSD, values_1KSD = keys_1SKD.transpose(1, 2), values_1SKD.transpose(1, 2)
            keys_RKTD, values_RKTD = _followed(keys_1KSD, keys_RWKD), _followed(values_1KSD, values_RWKD)
            shared_1SO, _ = _attend(queries_1SXD, keys_1KSD, values_1KSD, shared_bias)
            own_RWO, _ = _attend(queries_RWXD, keys_RKTD, values_RKTD, rows_bias)
            attended += [shared_1SO.squeeze(0), rows.take(own_RWO)]
            kept.append((keys_RKTD, values_RKTD))
        self.kept.append(kept)
        return torch.cat(attended), None

    def back(self, grads: Sequence[Tensor]) -> Tensor:
        """Gradients of each pack's keys, or values, as its replies saw them; now as they were given, flat."""
        flat = []
        for pack, rows, grad_RKTD in zip(self._packs, self._rows, grads, strict=True):
            to_shared_RKSD, to_rows_RKWD = grad_RKTD.split([pack.shared, rows.longest], dim=2)
            flat += [to_shared_RKSD.sum(0).transpose(0, 1), rows.take(to_rows_RKWD.transpose(1, 2))]
        return torch.cat(flat)


class ReplyAttention:
    """Each reply sees the prompt that it answers, and itself.

    Args:
        packs: Whose replies are read.
        prompts: What was kept of their prompts.
        shape: Of the model.
        like: Any tensor of the dtype and on the device that it computes in.
        seen: By layer, takes the gradients of what was kept; without it there is no way back.
    """

    def __init__(
        self,
        packs: Sequence[Pack],
        prompts: PromptAttention,
        *,
        shape: Shape,
        like: Tensor,
        seen: Sequence[Seen] = (),
    ) -> None:
        self._sizes = [len(pack.replies_M) for pack in packs]
        self._prompts = prompts
        self._seen = seen
        self._rows = [_Ragged(pack.reply_lengths, like.device) for pack in packs]
        self._biases = [_reply_bias(pack, shape, like) for pack in packs]

    def __call__(
        self, layer: int, queries_NXD: Tensor, keys_NXD: Tensor, values_NXD: Tensor, /
    ) -> tuple[Tensor, ThreeBack]:
        """See `Attention`; of what the prompts' attention has kept."""
        parts = (one.split(self._sizes) for one in (queries_NXD, keys_NXD, values_NXD))
        known = zip(self._rows, self._biases, self._prompts.kept[layer], strict=True)
        attended, backs = [], []
        for (rows, bias, (kept_keys, kept_values)), *numbers in zip(known, *parts, strict=True):
            queries_RLXD, keys_RLKD, values_RLKD = map(rows.fill, numbers)
            keys_RKTD, values_RKTD = _followed(kept_keys, keys_RLKD), _followed(kept_values, values_RLKD)
            attended_RLO, back = _attend(queries_RLXD, keys_RKTD, values_RKTD, bias)
            attended.append(rows.take(attended_RLO))
            backs.append(back)

        def back_to_all(grad_NO: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            said, asked = [], []
            for rows, grad_MO, back in zip(self._rows, grad_NO.split(self._sizes), backs, strict=True):
                to_queries_RLXD, *to_seen = back(rows.fill(grad_MO))
                (kept_keys, own_keys), (kept_values, own_values) = (
                    one.split([one.shape[2] - rows.longest, rows.longest], dim=2) for one in to_seen
                )
                own = (to_queries_RLXD, own_keys.transpose(1, 2), own_values.transpose(1, 2))
                said.append([rows.take(one) for one in own])
                asked.append((kept_keys, kept_values))
            self._seen[layer](*map(self._prompts.back, zip(*asked, strict=True)))
            to_queries_NXD, to_keys_NXD, to_values_NXD = map(torch.cat, zip(*said, strict=True))
            return to_queries_NXD, to_keys_NXD, to_values_NXD

        return torch.cat(attended), back_to_all


def _prompt_biases(pack: Pack, shape: Shape, like: Tensor) -> tuple[Tensor, Tensor]:
    """For what is shared, and for the rows; see `_bias`."""
    places_T = torch.arange(pack.shared + max(pack.prompt_lengths), device=like.device)
    bias_TT = _bias(places_T > places_T[:, None], like.dtype)
    groups = shape.heads // shape.kv_heads
    shared_SS = bias_TT[: pack.shared, : pack.shared]
    return shared_SS.repeat(groups, 1), bias_TT[pack.shared :].repeat(groups, 1)


def _reply_bias(pack: Pack, shape: Shape, like: Tensor) -> Tensor:
    """For each row: all of its prompt is seen, and of its reply what was said before; see `_bias`."""
    longest, kept = max(pack.reply_lengths), pack.shared + max(pack.prompt_lengths)
    places_T = torch.arange(kept + longest, device=like.device)
    ends_R = pack.shared + torch.tensor(pack.prompt_lengths, device=like.device)
    filling_RT = (places_T >= ends_R[:, None]) & (places_T < kept)
    later_LT = places_T > places_T[kept:, None]
    bias_RLT = _bias(filling_RT[:, None] | later_LT, like.dtype)
    return bias_RLT.repeat(1, shape.heads // shape.kv_heads, 1).unsqueeze(1)


def _bias(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores: minus infinity where a query, in the last dimension but one, does not see a key."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -math.inf)


def _followed(before_RKSD: Tensor, rows_RWKD: Tensor) -> Tensor:
    """Keys or values with each row's own after those before, [R, K, S + W, D]; what is one row's may be all rows'."""
    rows_RKWD = rows_RWKD.transpose(1, 2)
    return torch.cat([before_RKSD.expand(len(rows_RKWD), -1, -1, -1), rows_RKWD], dim=2)


def _attend(queries_RWXD: Tensor, keys_RKTD: Tensor, values_RKTD: Tensor, bias: Tensor) -> tuple[Tensor, ThreeBack]:
    """Attention of R rows of W queries to T keys each; the X query heads of a key head stand one after another in Q.

    Args:
        queries_RWXD: Queries.
        keys_RKTD: Keys.
        values_RKTD: Values.
        bias: Added to the scores, [Q, T], or [R, 1, Q, T] where rows differ.

    Returns:
        What each query takes, [R, W, X * D], and the way back.
    """
    rows, width, heads, depth = queries_RWXD.shape
    groups = (keys_RKTD.shape[1], heads // keys_RKTD.shape[1])

    def by_key(x_RWO: Tensor) -> Tensor:
        return x_RWO.view(rows, width, *groups, depth).permute(0, 2, 3, 1, 4).flatten(2, 3)

    def by_query(x_RKQD: Tensor) -> Tensor:
        by_query_RWXD: Tensor = x_RKQD.unflatten(2, (groups[1], width)).permute(0, 3, 1, 2, 4).flatten(2, 3)
        return by_query_RWXD

    attended_RKQD, attended_back = attend(by_key(queries_RWXD), keys_RKTD, values_RKTD, bias)

    def back(grad_RWO: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        to_queries_RKQD, to_keys_RKTD, to_values_RKTD = attended_back(by_key(grad_RWO))
        return by_query(to_queries_RKQD), to_keys_RKTD, to_values_RKTD

    return by_query(attended_RKQD).flatten(2), back
