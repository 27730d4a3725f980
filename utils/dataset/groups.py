"""Which rows belong together, so that a split does not part them."""

from __future__ import annotations

import pandas

from utils.dataset.table import normal_name

# A column under one of these names says what belongs together.
GROUP_NAMES = (
    *("fact", "fact id", "group", "group id", "cluster", "cluster id", "paraphrase of"),
    *("duplicate of", "question id", "faq id", "answer id", "conversation"),
    *("conversation id", "thread", "thread id", "dialog id", "dialogue id", "qid"),
    *("intent", "document id", "doc id", "source id", "passage id", "article id"),
)
# These may: "topic" of five rows is what is asked for, "topic" of a hundred is a shelf.
PERHAPS_NAMES = (
    "topic",
    "category",
    "subject",
    "section",
    "title",
    "id",
    "tag",
    "label",
)
MOST_ROWS_PERHAPS = 8  # on average in a group, for the names above
FEWEST_GROUPS = 5
LARGEST_SHARE = 0.3  # of all rows, in one group


def has_free_wordings(frame: pandas.DataFrame) -> bool:
    """Return whether each fact is asked in trained and in free wordings, as marked."""
    if not {"fact", "wording"} <= set(frame.columns):
        return False
    kinds = set(frame["wording"].str.strip().str.casefold())
    return kinds == {"trained", "free"} and bool((frame["fact"] != "").all())


def group_column(frame: pandas.DataFrame) -> str | None:
    """Return the column that says which rows belong together, or None.

    Its name decides, and that it groups at all: at least five groups, one of several
    rows, none of more than 30% of the rows. A topic or category counts only where its
    groups are small, eight rows on average: a larger one is a shelf with many
    different questions, and to hold out whole shelves would test something else.
    """
    names = {normal_name(str(column)): column for column in frame.columns}
    for name in (*GROUP_NAMES, *PERHAPS_NAMES):
        if name in names and _groups(frame[names[name]], name in PERHAPS_NAMES):
            return names[name]
    return None


def _groups(column: pandas.Series, perhaps: bool) -> bool:
    counts = column[column != ""].value_counts()
    if len(counts) < FEWEST_GROUPS or counts.iloc[0] < 2:
        return False
    if counts.iloc[0] > max(LARGEST_SHARE * len(column), 2):
        return False
    return not perhaps or counts.mean() <= MOST_ROWS_PERHAPS
