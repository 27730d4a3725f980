"""The ten checks of the capstone: from a file to a page, each with its usual mistakes.

Each check takes what the notebook has made and looks again: it groups anew, computes
anew, reads the adapter, asks AWS. What it measured is kept for the report
(`capstone_page`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.course import RunConfig
from utils.dataset.checks import Report as DataReport
from utils.dataset.faqs import Faqs
from utils.dataset.groups import find_groups, is_classes
from utils.deployment.billing import BillingGuard
from utils.deployment.findings import Report as ArtifactReport
from utils.evaluation.answers import Judge, groups_of, judge_for
from utils.evaluation.scores import Difference, paired_difference, proportion
from utils.exercises.frame import Verdict, Wrong

Rows = Sequence[Mapping[str, Any]]
ASKED_AGAIN = "wording"  # the part that asks for trained things on purpose
NOT_TO_KEEP = ("keys", "too few rows")  # findings that no reason excuses
FEWEST_ASKED = 3  # questions to an endpoint
FEWEST_GROUPS = 5  # for an interval to rely on; ours
MOST_FALSE = 0.1  # of other rows' answers, so many may a judge let pass
QUESTION = "{question}"
TUNED, BASELINE, PRINTED = "tuned", "baseline", "note printed"
CLOSE = 1e-6
OK, NO_KEY = 200, 403  # statuses of replies

STEPS = {
    "data_read": "The data report is read",
    "split_by_group": "The parts share no group",
    "judge_examined": "The judge was examined",
    "baseline": "The baseline has its best prompt",
    "tuned": "A model is tuned",
    "decision": "The decision has an interval",
    "artifact": "The artifact validates",
    "endpoint": "The endpoint answered",
    "page": "The page answered",
    "nothing_left": "Nothing is left",
}
"""Check → what has been reached when it passes, in the order of the road."""
OF_WHAT_IS_SERVED = ("artifact", "endpoint", "page")


def _step(judge: Callable[..., str]) -> Callable[..., Verdict]:
    """Turn a method that raises `Wrong` or returns what it saw into a check."""

    @functools.wraps(judge)
    def check(self: Capstone, *arguments: Any, **options: Any) -> Verdict:
        number = list(STEPS).index(judge.__name__) + 1
        served = self.measured.get("serve")
        for name in self._wrote.pop(judge.__name__, ()):
            self.measured.pop(name, None)  # what an earlier call has measured
        before = set(self.measured)
        try:
            found = judge(self, *arguments, **options)
        except Wrong as hint:
            verdict = Verdict(False, f"{number} of {len(STEPS)}: {hint}")
        else:
            told = f"{STEPS[judge.__name__]}: {found}"
            verdict = Verdict(True, f"{number} of {len(STEPS)} · {told}")
        self._wrote[judge.__name__] = set(self.measured) - before
        self.verdicts[judge.__name__] = verdict
        if self.measured.get("serve") != served:
            self._forget_another_model()
        return verdict

    return check


class Capstone:
    """The ten checks, and what they measured.

    First used in lesson 09, before section 1.

    Attributes:
        config: of the run.
        verdicts: check → what it found when it was last called.
        measured: what the report shows, by name; only checks that pass write here.
    """

    def __init__(self, config: RunConfig) -> None:
        """Begin: no check is passed yet."""
        self.config = config
        self.verdicts: dict[str, Verdict] = {}
        self.measured: dict[str, Any] = {}
        self._group_of: dict[tuple[str, str], int] = {}
        self._wrote: dict[str, set[str]] = {}  # check → names in `measured`

    def _forget_another_model(self) -> None:
        """Take back what later checks said of a model that is no longer served."""
        for step in OF_WHAT_IS_SERVED:
            self.verdicts.pop(step, None)
            for name in self._wrote.pop(step, ()):
                self.measured.pop(name, None)

    @property
    def passed(self) -> int:
        """Return how many of the ten checks are passed."""
        return sum(bool(verdict) for verdict in self.verdicts.values())

    def __repr__(self) -> str:
        """Return one line for each check, in order."""
        signs = {
            step: "✓"
            if self.verdicts.get(step)
            else "✗"
            if step in self.verdicts
            else "·"
            for step in STEPS
        }
        return "\n".join(f"{signs[step]} {told}" for step, told in STEPS.items())

    # --- the data ---

    @_step
    def data_read(
        self, faqs: Faqs, report: DataReport, decisions: Mapping[str, str]
    ) -> str:
        """Check that the data report was read.

        Args:
            faqs: the file, as `load_faqs` returns it.
            report: on it, as `check` of the data returns it.
            decisions: kind of finding → why it may stay, in a sentence of your own.
        """
        if report.rows != len(faqs):
            raise Wrong(
                f"the report is on {report.rows} rows and the file has {len(faqs)}: "
                "call `check(faqs)` again after each change of the file."
            )
        kinds = list(dict.fromkeys(finding.kind for finding in report.findings))
        for finding in report.findings:
            if finding.kind in NOT_TO_KEEP:
                raise Wrong(f"{finding.kind} cannot stay. {finding}")
        if unknown := [kind for kind in decisions if kind not in kinds]:
            named = ", ".join(map(repr, kinds)) or "nothing"
            raise Wrong(
                f"`decisions` has {unknown[0]!r}, and the report names {named}: write "
                "the kind as the report does."
            )
        if open_kinds := [kind for kind in kinds if kind not in decisions]:
            raise Wrong(
                f"the report names {', '.join(map(repr, open_kinds))}. Mend the file, "
                "or write into `decisions` in a sentence why it may stay."
            )
        for kind, reason in decisions.items():
            if not isinstance(reason, str) or len(reason.split()) < 3:
                raise Wrong(
                    f"{reason!r} is no reason why {kind!r} may stay: write a sentence."
                )
        self.measured["rows"] = report.rows
        self.measured["kept"] = {kind: decisions[kind] for kind in kinds}
        kept = f", kept with a reason: {', '.join(kinds)}" if kinds else ""
        return f"{report.rows} rows{kept}."

    @_step
    def split_by_group(self, faqs: Faqs, parts: Mapping[str, Any]) -> str:
        """Check that rows that belong together lie in one part.

        Args:
            faqs: the file.
            parts: part → rows, as `split` returns them.
        """
        missing = {"train", "validation"} - set(parts)
        if missing or len(parts) < 3:
            raise Wrong(
                f"the parts are {', '.join(parts) or 'none'}: train, validation (which "
                "chooses) and a part to test with (which is reported) are needed."
            )
        groups = find_groups(faqs.frame)
        records = faqs.frame.to_dict("records")
        of_row = {_key(row): n for row, n in zip(records, groups.labels, strict=True)}
        place: dict[int, str] = {}
        for name in [name for name in parts if name != ASKED_AGAIN]:
            for row in parts[name]:
                group = of_row.get(_key(row))
                if group is None:
                    raise Wrong(f"{row['instruction']!r} ({name}) is not in the file.")
                if place.setdefault(group, name) != name:
                    raise Wrong(
                        f"a leak: {row['instruction']!r} is in {name!r}, and a row of "
                        f"its group is in {place[group]!r}. Split whole groups, as "
                        "`split` does."
                    )
        tested = {group for group, name in place.items() if name == self.tested(parts)}
        if len(tested) < 2:
            raise Wrong("one group is tested: an interval needs several.")
        self._group_of = {(key[0], key[2]): group for key, group in of_row.items()}
        self.measured["parts"] = {name: len(part) for name, part in parts.items()}
        self.measured["groups"] = len(set(groups.labels))
        self.measured["grouped_by"] = groups.column
        how = f"the column {groups.column!r}" if groups.column else "likeness"
        return f"{self.measured['groups']} groups by {how}, {len(tested)} tested."

    @staticmethod
    def tested(parts: Mapping[str, Any]) -> str:
        """Return the name of the part to report: on things that are not trained."""
        return "fact" if "fact" in parts else "test"

    def groups(self, rows: Rows) -> list[Any]:
        """Return the group of each row, as the file was split.

        Args:
            rows: of the file.
        """
        if not self._group_of:
            return list(groups_of(rows))
        # Not by context: notes have been added to it.
        return [self._group_of[row["instruction"], row["response"]] for row in rows]

    # --- the judge, the baseline, the tuned model ---

    @_step
    def judge_examined(self, judge: Judge | ClassJudge, rows: Rows) -> str:
        """Check that a judge passes the file's answers, and not those to other rows.

        Args:
            judge: has `right(answers, rows)`.
            rows: to test with.
        """
        own = [str(row["response"]) for row in rows]
        refused = [n for n, right in enumerate(judge.right(own, rows)) if not right]
        if refused:
            row = rows[refused[0]]
            raise Wrong(
                f"it refuses the file's own answer to {row['instruction']!r}: correct "
                "the row's must_say and must_not_say, or the judge."
            )
        others = [
            next((text for text in own[n:] + own[:n] if text != own[n]), "")
            for n in range(len(own))
        ]
        false = sum(judge.right(others, rows)) / len(rows)
        if false > MOST_FALSE:
            raise Wrong(
                f"it passes {false:.0%} of answers that belong to other questions: a "
                "judge that says yes to everything measures nothing."
            )
        return f"it passes all {len(rows)} own answers, and {false:.0%} of others'."

    @_step
    def baseline(
        self,
        prompts: Mapping[str, str],
        tried: Mapping[str, Sequence[bool]],
        chosen: str,
        validation: Rows,
        right: Sequence[bool],
        tests: Rows,
    ) -> str:
        """Check that tuning is compared with the best prompt, chosen before the test.

        Args:
            prompts: name → text with {question} in it.
            tried: name → whether each validation question was answered right.
            chosen: the name of the prompt to compare with.
            validation: the questions that the prompts were tried on.
            right: whether each test question was answered right with that prompt.
            tests: the test questions.
        """
        for name, text in prompts.items():
            if not str(text).strip():
                raise Wrong(
                    f"the prompt {name!r} is empty: the model is asked nothing."
                )
            if QUESTION not in text:
                raise Wrong(f"the prompt {name!r} does not hold {QUESTION}.")
        if len(set(prompts.values())) < 2:
            raise Wrong("one prompt is no choice: write a second one.")
        if set(tried) != set(prompts):
            raise Wrong("try all prompts, each on the same validation questions.")
        tested = {row["instruction"] for row in tests}
        if any(row["instruction"] in tested for row in validation):
            raise Wrong(
                "the prompts were tried on test questions, so the best one's score is "
                "flattered. Choose on the validation part."
            )
        if any(len(hits) != len(validation) for hits in tried.values()):
            raise Wrong(
                f"{len(validation)} validation questions need as many verdicts."
            )
        best = max(sum(hits) for hits in tried.values())
        if chosen not in tried or sum(tried[chosen]) < best:
            raise Wrong(
                f"{chosen!r} is not the best of the prompts: {_scores(tried)}. A weak "
                "baseline makes any tuning look good."
            )
        if len(right) != len(tests):
            raise Wrong(f"{len(right)} verdicts for {len(tests)} test questions.")
        self.measured["prompt"] = chosen, prompts[chosen]
        self.measured["tried"] = {
            name: sum(hits) / len(hits) for name, hits in tried.items()
        }
        share = self.measured[BASELINE] = proportion(right, self.groups(tests))
        return f"{len(prompts)} prompts tried on {len(validation)}, {share.n} tested."

    @_step
    def tuned(
        self, adapter: Path, held_out: Sequence[float], trained: Rows, tests: Rows
    ) -> str:
        """Check that an adapter learned, and not from the test questions.

        Args:
            adapter: the folder that `save_adapter` wrote.
            held_out: the loss on validation rows, before the training and after.
            trained: the rows that it could be trained on, with `instruction`.
            tests: the test questions.
        """
        from safetensors.torch import load_file

        file = Path(adapter) / "adapter_model.safetensors"
        if not file.is_file():
            raise Wrong(f"{Path(adapter).name} holds no adapter: call `save_adapter`.")
        weights = load_file(file)
        if not any(w.any() for name, w in weights.items() if "lora_B" in name):
            raise Wrong(
                "all matrices B are zero: this adapter was saved before it was trained."
            )
        asked = {row["instruction"] for row in tests}
        leaked = [r["instruction"] for r in trained if r["instruction"] in asked]
        if leaked:
            raise Wrong(f"a leak: the test question {leaked[0]!r} was trained on.")
        if len(held_out) < 2:
            raise Wrong("measure the held-out loss before the training and after it.")
        if not held_out[-1] < held_out[0]:
            raise Wrong(
                f"the held-out loss went from {held_out[0]:.2f} to {held_out[-1]:.2f}: "
                "lower the learning rate, or take more steps."
            )
        self.measured["held_out"] = held_out[0], held_out[-1]
        self.measured["trained"] = len(trained)
        return f"the held-out loss fell; {len(trained)} rows to train on."

    @_step
    def decision(
        self,
        serve: str,
        gain: Difference,
        right: Mapping[str, Sequence[bool]],
        tests: Rows,
    ) -> str:
        """Check that a decision follows from an interval.

        Args:
            serve: "tuned" or "baseline".
            gain: tuned minus baseline, with its interval.
            right: "tuned" and "baseline" → whether each test question was answered
                right; "note printed", where notes were looked up, is reported too.
            tests: the test questions.
        """
        if not isinstance(gain, Difference):
            raise Wrong(
                f"the gain is {gain!r}, without an interval: `paired_difference` of "
                "both, on the same questions, gives one."
            )
        both = right[TUNED], right[BASELINE]
        fair = paired_difference(*both, groups=self.groups(tests))
        if abs(gain.value - fair.value) > CLOSE:
            turned = abs(gain.value + fair.value) <= CLOSE
            raise Wrong(
                "the sign is turned: subtract the baseline from the tuned model."
                if turned
                else f"the gain is {gain.value:+.0%}, and these verdicts give "
                f"{fair.value:+.0%}: compute it from both on all test questions."
            )
        if abs(gain.low - fair.low) > CLOSE or abs(gain.high - fair.high) > CLOSE:
            raise Wrong(
                "the interval takes the wordings of one thing for independent: give "
                "`groups=road.groups(tests)`."
            )
        if serve not in (TUNED, BASELINE):
            raise Wrong(f"serve is {serve!r}: decide for {TUNED!r} or {BASELINE!r}.")
        if serve == TUNED and gain.low <= 0:
            raise Wrong(
                f"the gain may be luck: its interval begins at {gain.low:+.0%}. Serve "
                "the baseline, or ask more questions first."
            )
        self.measured[TUNED] = proportion(right[TUNED], self.groups(tests))
        self.measured["gain"], self.measured["serve"] = gain, serve
        if PRINTED in right:
            self.measured[PRINTED] = proportion(right[PRINTED], self.groups(tests))
        where = "lies above" if gain.low > 0 else "includes or lies below"
        count = len(set(self.groups(tests)))
        few = "" if count >= FEWEST_GROUPS else ": too few groups to rely on it"
        return (
            f"{serve} is served; the gain's interval {where} zero, on {gain.n} "
            f"questions in {count} groups{few}."
        )

    # --- the artifact, the endpoint, the page ---

    @_step
    def artifact(self, report: ArtifactReport, archive: Path, made_from: Path) -> str:
        """Check that the archive was validated, loaded, and made after the training.

        Args:
            report: as `artifact.validate(archive, load=True)` returns it.
            archive: the `model.tar.gz`.
            made_from: the adapter's folder.
        """
        if report.name != Path(archive).name:
            raise Wrong(
                f"the report is on {report.name}: validate the archive itself, "
                f"{Path(archive).name}, which is what will be uploaded."
            )
        if report.errors:
            raise Wrong(f"it would not serve: {report.errors[0]}")
        if any("nothing was executed" in what for what in report.unchecked):
            raise Wrong("nobody has loaded it: validate with `load=True`.")
        weights = Path(made_from) / "adapter_model.safetensors"
        if weights.is_file() and (
            weights.stat().st_mtime > Path(archive).stat().st_mtime
        ):
            raise Wrong("the archive is older than the adapter: build it again.")
        self.measured["archive"] = Path(archive).stat().st_size
        return f"{len(report.files)} files, loaded once under the server's rules."

    @_step
    def endpoint(
        self,
        asked: Sequence[str],
        served: Sequence[str],
        expected: Sequence[str],
        others: Sequence[str],
        right: Sequence[bool] = (),
    ) -> str:
        """Check that the endpoint answers as the model that was decided for.

        Args:
            asked: the questions.
            served: the endpoint's answers.
            expected: what the model that is served said in the evaluation.
            others: what the other one said.
            right: whether each answer is right, for the report.
        """
        if len(asked) < FEWEST_ASKED or not (
            len(asked) == len(served) == len(expected) == len(others)
            and len(right) in (0, len(asked))
        ):
            raise Wrong(f"ask {FEWEST_ASKED} questions or more, with an answer each.")
        if not all(text.strip() for text in served):
            raise Wrong("an answer is empty: read the endpoint's log.")
        same = sum(a == b for a, b in zip(served, expected, strict=True))
        wrong = sum(a == b for a, b in zip(served, others, strict=True))
        if wrong > same:
            raise Wrong(
                f"{wrong} of {len(asked)} answers are those of the other model: is the "
                "adapter in the archive, and does the request name the right one?"
            )
        if not same:
            raise Wrong(
                "no answer is the one of the evaluation: does the request carry the "
                "same prompt and the same notes?"
            )
        signs = ["✓ " if good else "✗ " for good in right] or [""] * len(asked)
        told = [f"{sign}{text}" for sign, text in zip(signs, served, strict=True)]
        self.measured["answers"] = list(zip(asked, told, strict=True))
        return f"{same} of {len(asked)} answers are those of the evaluation."

    @_step
    def page(self, reply: Any, refused: Any) -> str:
        """Check that the page's API answers with a key, and not without one.

        Args:
            reply: to a question, with the key.
            refused: to the same one, without it.
        """
        if reply.status_code == NO_KEY:
            raise Wrong("the page refused you: send the key, in the header x-api-key.")
        if reply.status_code != OK:
            raise Wrong(
                f"the page's API replied with status {reply.status_code}: is the "
                "endpoint in service, and does WEB_ENDPOINT name it?"
            )
        answer = reply.json().get("answer", "")
        if not answer.strip():
            raise Wrong("the page's API replied without an answer.")
        if refused.status_code != NO_KEY:
            raise Wrong(
                f"without a key the status is {refused.status_code}: anybody could ask "
                "at your expense."
            )
        return "with the key it answers, without one it refuses."

    @_step
    def nothing_left(self, guard: BillingGuard) -> str:
        """Check that an endpoint was there, and that nothing of this run is.

        Args:
            guard: that noted what was created.
        """
        if not any(entry.kind == "endpoint" for entry in guard.entries):
            raise Wrong(
                "this guard has seen no endpoint: make it before you create one."
            )
        left = guard.remaining()
        if left:
            raise Wrong(
                f"{left[0].replace(guard.run, '…')} is still there, of {len(left)} in "
                "all, and an endpoint bills by the hour: call `guard.teardown()`."
            )
        self.measured["created"] = len(guard.entries)
        self.measured["bill"] = guard.bill().total
        return f"{len(guard.entries)} things were created and deleted."


class ClassJudge:
    """Judges classes: right is an answer that names its row's class and no other."""

    def __init__(self, classes: Sequence[str]) -> None:
        """Remember the classes of the file."""
        names = sorted({name.casefold() for name in classes}, key=len, reverse=True)
        # The longest first: "not spam" holds "spam", and is one class.
        choice = "|".join(map(re.escape, names))
        self._named = re.compile(rf"(?<!\w)(?:{choice})(?!\w)")

    def right(self, answers: Sequence[str], rows: Rows) -> list[bool]:
        """Return whether each answer is right.

        Args:
            answers: what a model said.
            rows: the messages, with the class as `response`.
        """
        named = [set(self._named.findall(text)) for text in map(str.casefold, answers)]
        wanted = [{str(row["response"]).casefold()} for row in rows]
        return [one == other for one, other in zip(named, wanted, strict=True)]


def judge_of(faqs: Faqs, tests: Rows, trained: Rows) -> Judge | ClassJudge:
    """Return the judge that fits a file: of classes, or of answers in free words.

    First used in lesson 09, section 2.

    Args:
        faqs: the file.
        tests: the rows to judge answers to.
        trained: rows whose answers are known, for the judge of likeness.
    """
    if is_classes(list(faqs.frame["response"])):
        return ClassJudge(sorted(set(faqs.frame["response"])))
    return judge_for([*tests], [*trained])


def suggested_prompts(faqs: Faqs) -> dict[str, str]:
    """Return prompts to begin with; write better ones beside them.

    First used in lesson 09, section 3.

    Args:
        faqs: the file; where its answers are classes, the prompts name them.
    """
    if not is_classes(list(faqs.frame["response"])):
        return {
            "as asked": QUESTION,
            "short": f"{QUESTION}\nAnswer with one sentence, taken from the notes.",
        }
    classes = ", ".join(sorted(set(faqs.frame["response"])))
    return {
        "classes": f"Which of these is the message about: {classes}?\n{QUESTION}",
        "one word": f"{QUESTION}\nAnswer with one word out of {classes}.",
    }


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["instruction"], row.get("context") or "", row["response"]


def _scores(tried: Mapping[str, Sequence[bool]]) -> str:
    return ", ".join(
        f"{name} {sum(hits)} of {len(hits)}" for name, hits in tried.items()
    )
