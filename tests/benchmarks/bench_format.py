"""What simple methods reach at the format task, so that a model has a rival.

    .venv/bin/python tests/benchmarks/bench_format.py
    .venv/bin/python tests/benchmarks/bench_format.py --examples

Topic and urgency by logistic regression on words and runs of letters, fitted on so many
rows of the train part; the resource by a regular expression: the first word with a
hyphen, underscore, dot or slash in it. All are asked about the test part.

With `--examples`: how many of lesson 02's forty messages SmolLM2 answers with valid
JSON after one worked example, for each of five examples (their rows in the file).
"""

import ast
import re
import sys

import nbformat
import pandas
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union

from utils.course import ROOT
from utils.evaluation.json_format import format_scores, load_messages
from utils.models import generate, load_model, load_tokenizer, settings_for

SIZES = (240, 600, 1200)
EXAMPLES = (49, 110, 122, 272, 320)
LESSON = ROOT / "notebooks" / "02_prompting.ipynb"
NAME = re.compile(r"\w[-_./]\w")


def classifier():
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    regression = LogisticRegression(C=10, max_iter=2000)
    return make_pipeline(make_union(words, letters), regression)


def likely_name(message: str) -> str:
    words = (word.strip(".,:;!?\"()'") for word in message.split())
    return next((word for word in words if NAME.search(word)), "")


def measured() -> dict[int, dict[str, float]]:
    """Rows that are fitted on → the share of right values of each field."""
    messages = load_messages()
    train = messages[messages["part"] == "train"].sample(frac=1, random_state=0)
    test = messages[messages["part"] == "test"]
    rows = {}
    for size in SIZES:
        some, right = train[:size], {}
        for name in ("topic", "urgency"):
            fitted = classifier().fit(some["instruction"], some[name])
            right[name] = fitted.predict(test["instruction"]) == test[name]
        found = test["instruction"].map(likely_name)
        right["resource"] = found == test["resource"]
        table = pandas.DataFrame(right)
        rows[size] = {**table.mean(), "all three": table.all(axis=1).mean()}
    return rows


def instruction() -> str:
    """What lesson 02 asks with, from its cell."""
    (cell,) = [c for c in nbformat.read(LESSON, 4).cells if c.id == "json-ask"]
    (value,) = [
        node.value
        for node in ast.parse(cell.source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "form"
    ]
    return ast.literal_eval(value)


def after_one_example() -> dict[int, float]:
    """Row of the example → the share of valid answers to the forty shortest."""
    settings = settings_for("smollm2")
    model, tokenizer = load_model(settings), load_tokenizer(settings)
    messages, form = load_messages(), instruction()
    test = messages[messages["part"] == "test"]
    shortest = test["instruction"].str.len().sort_values(kind="stable").index[:40]
    found = {}
    for row in EXAMPLES:
        example = messages.loc[row]
        assert example["part"] == "train"
        turns = [
            {"role": "system", "content": "You are a helpful assistant."},
            {
                "role": "user",
                "content": f"{form}\n\nMessage: {example['instruction']}\nJSON:",
            },
            {"role": "assistant", "content": example["response"]},
        ]
        prompts = [
            tokenizer.apply_chat_template(
                [*turns, {"role": "user", "content": f"Message: {text}\nJSON:"}],
                tokenize=False,
                add_generation_prompt=True,
            )
            for text in test.loc[shortest, "instruction"]
        ]
        answers = generate(model, tokenizer, prompts, 36, stop=["<|im_end|>"])
        found[row] = format_scores(answers, test.loc[shortest])["valid"].mean()
    return found


def main() -> None:
    if "--examples" in sys.argv[1:]:
        for row, share in after_one_example().items():
            print(f"example of row {row}: {share:.0%} valid")
        return
    table = pandas.DataFrame(measured()).T.rename_axis("rows")
    print(table.map("{:.1%}".format))


if __name__ == "__main__":
    main()
