"""What grader and guard share: replies that begin with one of a few labels, and how those are calibrated."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.learning.packing import pack
from cloning_server.learning.passes import Passes
from curriculum.train.training import RoleExample, grouped
from mesh.lm.chat import Example, Prompt, encode_prompt
from mesh.main_brain.role_manifest import Calibration

# A few hundred texts choose the calibration: a lower one follows their words more than the model.
_SLOPE_PENALTY = 50


class IndistinctLabels(Exception):
    """The base model's tokenizer can't tell the labels apart by their first tokens."""


def first_tokens(labels: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the first token of each label.

    Raises:
        IndistinctLabels: Two labels begin with the same token.
    """
    tokens = [int(tokenizer(label, add_special_tokens=False)["input_ids"][0]) for label in labels]
    if len(set(tokens)) < len(tokens):
        raise IndistinctLabels(
            f"the base model's tokenizer begins two of the labels {', '.join(labels)} with one token"
        )
    return tokens


def labelled_example(
    prompt: Prompt, label: int, *, label_tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> RoleExample:
    """Returns an example of a prompt and the first token of the label with this index."""
    tokens = encode_prompt(tokenizer, prompt)
    return RoleExample(example=Example(tokens=(*tokens, label_tokens[label]), reply_start=len(tokens)), label=label)


def weigh_examples(
    passes: Passes, factors: LoraFactors | None, examples: Sequence[RoleExample], label_tokens: Sequence[int]
) -> list[list[float]]:
    """Returns the probabilities of the labels for each example, as the engine's `weigh` gives them."""
    # Equal examples have equal weights.
    weights: dict[RoleExample, list[float]] = {}
    for members in grouped(examples, passes.device):
        packed = pack([member.example for member in members], device=passes.device)
        blocks = [logits_BV[:, list(label_tokens)].softmax(-1) for logits_BV, _ in passes.logits(packed, factors)]
        rows = torch.cat(blocks).tolist()
        weights.update(zip(members, rows, strict=True))
    return [weights[example] for example in examples]


def fit_calibration(
    probabilities: Sequence[Sequence[float]],
    labels: Sequence[int],
    *,
    weights_N: Tensor,
    features: Sequence[Sequence[float]] = (),
) -> Calibration:
    """Fits a calibration by maximum likelihood, with a penalty on its parameters.

    Args:
        probabilities: Of the labels, for each text.
        labels: The index of each text's label.
        weights_N: How much each text counts.
        features: What is known of each text beside its probabilities; none gives a calibration without slopes.
    """
    logs_NL = torch.tensor(probabilities, dtype=torch.float64).clamp_min(1e-6).log()
    features_NF = torch.tensor(features or [()] * len(labels), dtype=torch.float64)
    labels_N = torch.tensor(labels)
    count = logs_NL.shape[1]
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    biases_L = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    slopes_LF = torch.zeros(count, features_NF.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scale, biases_L, slopes_LF], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        scores_NL = scale * logs_NL + biases_L + features_NF @ slopes_LF.T
        penalty = _SLOPE_PENALTY * slopes_LF.square().sum() + biases_L.square().sum() + (scale - 1).square()
        nats_N = torch.nn.functional.cross_entropy(scores_NL, labels_N, reduction="none")
        value = (weights_N * nats_N).mean() + penalty / len(labels)
        value.backward()
        return value

    optimizer.step(loss)
    rows = [tuple(round(value, 6) for value in row) for row in slopes_LF.tolist()]
    return Calibration(
        # Below 0 the likelier label would be the less likely one, which a model that knows nothing may suggest.
        scale=max(0.0, round(float(scale.detach()), 6)),
        biases=tuple(round(value, 6) for value in biases_L.tolist()),
        slopes=tuple(rows) if features else (),
    )


def even_weights(is_positive_N: Tensor) -> Tensor:
    """Weights with a mean of 1 that give the positive and the others half of the sum each, if there are both."""
    share = is_positive_N.double().mean()
    if share in {0, 1}:
        return torch.ones(len(is_positive_N), dtype=torch.float64)
    return torch.where(is_positive_N, 0.5 / share, 0.5 / (1 - share))
