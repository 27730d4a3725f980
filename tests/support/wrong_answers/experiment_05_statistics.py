"""Mistakes planted in the exercises of experiment 05, the statistics of evaluation."""

WRONG_ANSWERS = {
    "check_cluster_interval": [
        (
            "def cluster_interval(gains, words):\n"
            "    means = [gains[words == name].mean() for name in np.unique(words)]\n"
            "    return np.percentile(means, [2.5, 97.5])",
            "wide, where .* is right|interval is around",
        ),
        (
            "def cluster_interval(gains, words):\n"
            "    names = np.unique(words)\n"
            "    means = []\n"
            "    for _ in range(500):\n"
            "        chosen = generator.permutation(names)\n"
            "        means.append(\n"
            "            np.concatenate([gains[words == n] for n in chosen]).mean()\n"
            "        )\n"
            "    return np.percentile(means, [2.5, 97.5])",
            "with replacement",
        ),
        (
            "def cluster_interval(gains, words):\n"
            "    names = np.unique(words)\n"
            "    chosen = generator.choice(names, len(names))\n"
            "    return np.concatenate([gains[words == n] for n in chosen]).mean()",
            "expected two bounds",
        ),
        ("cluster_interval = lambda gains: gains", "stops with TypeError"),
        ("cluster_interval = 4", "expected a function"),
    ],
    "check_report": [
        (
            "def report(hits):\n"
            "    best = hits[:, :40].mean(axis=1).argmax()\n"
            "    return hits[best].mean()",
            "both choose the winner and score it",
        ),
        ("report = lambda hits: hits.mean()", "has to choose the best one"),
        (
            "def report(hits):\n"
            "    best = hits[:, :40].mean(axis=1).argmax()\n"
            "    return hits[best, 40:].sum() / 80",
            "by the share of its hits",
        ),
        ("report = lambda hits: hits[hits]", "stops with TypeError"),
        ("report = 0.8", "expected a function"),
    ],
}
