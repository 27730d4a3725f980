"""What simple methods reach at the format task, so that a model has a rival.

    .venv/bin/python tests/benchmarks/bench_format.py

Topic and urgency by logistic regression on words and runs of letters, fitted on so many
rows of the train part; the resource by a regular expression: the first word with a
hyphen, underscore, dot or slash in it. All are asked about the test part.
"""

import re

import pandas
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union

from utils.evaluation.json_format import load_messages

SIZES = (240, 600, 1200)
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


def main() -> None:
    table = pandas.DataFrame(measured()).T.rename_axis("rows")
    print(table.map("{:.1%}".format))


if __name__ == "__main__":
    main()
