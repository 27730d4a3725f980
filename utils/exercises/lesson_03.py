"""Checks for the exercises of lesson 03, data set and template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from utils.exercises.frame import Wrong, exercise, read_number, require_type
from utils.helpers import END_KEY, IGNORED, INSTRUCTION_KEY, RESPONSE_KEY


@exercise("a list of labels, one for each token")
def check_labels(
    labels: Sequence[int], prompt_ids: Sequence[int], completion_ids: Sequence[int]
) -> str:
    """Check labels: -100 over the prompt, the token ids over the completion.

    First used in lesson 03, section 3.
    """
    labels = labels.tolist() if hasattr(labels, "tolist") else labels
    require_type((list, tuple), labels, "a list of numbers")
    labels, prompt, completion = list(labels), list(prompt_ids), list(completion_ids)
    right = [IGNORED] * len(prompt) + completion
    if labels == right:
        return "the loss sees the answer and its end, and nothing of the prompt."
    if labels == prompt + completion:
        raise Wrong(
            f"the prompt has labels too, so the model would learn to write questions. "
            f"Put {IGNORED} there."
        )
    if labels == completion:
        raise Wrong(
            f"{len(labels)} labels for {len(right)} tokens: the prompt needs labels as "
            f"well, {IGNORED} each."
        )
    if labels == right[1:] + [IGNORED] or labels == right[1:]:
        raise Wrong(
            "these are shifted by one. The model shifts by itself: a label stands at "
            "the place of its own token."
        )
    if labels == [0] * len(prompt) + completion:
        raise Wrong(f"0 is a token like any other. What PyTorch ignores is {IGNORED}.")
    if len(labels) == len(right) and labels[: len(prompt)] == right[: len(prompt)]:
        raise Wrong(
            "some of the completion is masked or changed. All of it is learned, "
            f"{END_KEY!r} included: that is how the model learns to stop."
        )
    if len(labels) != len(right):
        raise Wrong(f"{len(labels)} labels for {len(right)} tokens: give one for each.")
    raise Wrong(
        f"start with {IGNORED} as often as the prompt has tokens; then come the "
        "completion's own ids."
    )


@exercise("the share of the batch that is padding, a number between 0 and 1")
def check_padding_share(share: float, lengths: Sequence[int]) -> str:
    """Check the share of a batch that is padding, for rows of these lengths.

    First used in lesson 03, section 7.
    """
    share = read_number(share, "a number between 0 and 1")
    total, real = len(lengths) * max(lengths), sum(lengths)
    right = (total - real) / total

    def close(value: float) -> bool:
        return abs(share - value) < 0.005

    if close(right):
        return "that share of the arithmetic is spent on nothing."
    if close(100 * right):
        raise Wrong("that is a percentage: divide by 100.")
    if close(real / total):
        raise Wrong("that is the share of real tokens: the padding is the rest.")
    if close((total - real) / real):
        raise Wrong(
            "you divided by the real tokens: the batch holds padding and real tokens."
        )
    if close(total - real):
        raise Wrong("that is the number of padding tokens: divide by all positions.")
    raise Wrong(
        "every row is padded to the longest: the batch has `len(lengths) * "
        "max(lengths)` positions, of which `sum(lengths)` are real."
    )


@exercise("the two texts of the record")
def check_record(record: Mapping[str, str], text: str) -> str:
    """Check a record for another task, here sentiment, about the given text.

    First used in lesson 03, section 2.
    """
    require_type(Mapping, record, "a dictionary with `instruction` and `response`")
    for key in ("instruction", "response"):
        if not isinstance(record.get(key), str) or not record[key].strip():
            raise Wrong(f"there is no text under the key {key!r}.")
    instruction, response = record["instruction"], record["response"]
    if any(key in instruction + response for key in (INSTRUCTION_KEY, RESPONSE_KEY)):
        raise Wrong("the template's keys are in your text: `add_text` writes them.")
    if END_KEY in response:
        raise Wrong(f"{END_KEY!r} is in your response: `add_text` writes it.")
    if text not in instruction:
        raise Wrong("the instruction must hold the review itself, word for word.")
    task = instruction.replace(text, " ")
    if not any(character.isalpha() for character in task):
        raise Wrong("the review alone is no task: say what to do with it.")
    missing = [one for one in ("positive", "negative") if one not in task.lower()]
    if missing:
        raise Wrong(
            f"the instruction does not name the class {missing[0]!r}: a model can only "
            "choose between classes that it is told of."
        )
    given = response.strip()
    if given.lower() == "positive":
        raise Wrong("read the review again: the customer is not happy.")
    if len(given.split()) > 1:
        raise Wrong("a class is best learned as one word: shorten the response.")
    if given != "negative":
        raise Wrong(
            f"{given!r} is neither *positive* nor *negative*, to the letter: a class "
            "is written the same way every time."
        )
    return "the same template carries any task that is text in and text out."


@exercise("the number of rows for replay")
def check_replay_rows(count: int, n_train: int, share: float) -> str:
    """Check how many rows for replay make up a share of all rows.

    First used in lesson 03, section 8.

    Args:
        count: the learner's answer.
        n_train: the training rows, which all stay.
        share: of replay in all rows, from 0 to below 1.
    """
    count = read_number(count, "a number of rows")
    right = n_train * share / (1 - share)

    def close(value: float) -> bool:
        return abs(count - value) <= 1

    if close(right):
        return "of all rows, those for replay included, they are that share."
    if close(share * n_train):
        raise Wrong(
            "that is the share of the training rows. Beside those, it is a smaller "
            "share of all rows."
        )
    if close(n_train + right):
        raise Wrong("that is how many rows there are in all: how many are replay?")
    if close(n_train * (1 - share)):
        raise Wrong("that leaves training rows out: all of them stay.")
    if close(n_train * (1 - share) / share):
        raise Wrong(
            "you turned the shares round: that much would nearly all be replay."
        )
    raise Wrong(
        "with r rows for replay, r / (n_train + r) is to be the share: solve for r."
    )
