"""The tasks that the lab model learns from its corpus and is examined on.

Relations between words, word problems, average speeds and products, each as a document
for the corpus and as a prompt with its right answer. Pairs of operands for which
`held_out` is true never meet in the corpus; the examination uses only such pairs.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from utils.helpers import DEFAULT_SEED


@dataclass(frozen=True)
class Task:
    """A prompt with its right answer; `kind` names the relation or the kind of problem.

    `also_valid` holds what other relations would answer to the same word, so that an
    answer can be told from nonsense even where the prompt leaves open which is meant.
    """

    prompt: str
    answer: str
    kind: str
    also_valid: frozenset[str] = frozenset()


# --- relations between words ---

# fmt: off
_ANIMAL_COLUMNS = ("sound", "young", "group", "home", "food", "adjective")
_ANIMALS = {
    "cow": "moo calf herd barn grass bovine",
    "dog": "bark puppy pack kennel bones canine",
    "cat": "meow kitten clowder basket fish feline",
    "duck": "quack duckling raft pond weeds anatine",
    "horse": "neigh foal team stable oats equine",
    "sheep": "baa lamb flock fold clover ovine",
    "pig": "oink piglet drove sty scraps porcine",
    "chicken": "cluck chick brood coop grain galline",
    "lion": "roar cub pride savanna zebras leonine",
    "frog": "croak tadpole army swamp flies ranine",
    "goat": "bleat kid tribe pen leaves caprine",
    "goose": "honk gosling gaggle meadow barley anserine",
    "bee": "buzz larva swarm hive nectar apian",
    "wolf": "howl pup rout den elk lupine",
    "owl": "hoot owlet parliament hollow voles strigine",
    "deer": "bellow fawn herd forest acorns cervine",
    "swan": "hiss cygnet wedge lake algae cygnine",
    "mouse": "squeak pinkie mischief hole cheese murine",
    "elephant": "trumpet calf parade plain twigs elephantine",
    "crow": "caw nestling murder treetop seeds corvine",
}
_COUNTRY_COLUMNS = ("capital", "language", "continent", "currency", "people", "dish")
_COUNTRIES = {
    "France": "Paris French Europe euro French baguette",
    "Spain": "Madrid Spanish Europe euro Spaniards paella",
    "Italy": "Rome Italian Europe euro Italians pasta",
    "Germany": "Berlin German Europe euro Germans pretzel",
    "Japan": "Tokyo Japanese Asia yen Japanese sushi",
    "China": "Beijing Mandarin Asia yuan Chinese dumplings",
    "India": "Delhi Hindi Asia rupee Indians curry",
    "Egypt": "Cairo Arabic Africa pound Egyptians koshari",
    "Kenya": "Nairobi Swahili Africa shilling Kenyans ugali",
    "Brazil": "Brasilia Portuguese America real Brazilians feijoada",
    "Mexico": "Mexico Spanish America peso Mexicans tacos",
    "Canada": "Ottawa English America dollar Canadians poutine",
    "Russia": "Moscow Russian Europe ruble Russians borscht",
    "Turkey": "Ankara Turkish Asia lira Turks kebab",
    "Greece": "Athens Greek Europe euro Greeks souvlaki",
    "Poland": "Warsaw Polish Europe zloty Poles pierogi",
    "Norway": "Oslo Norwegian Europe krone Norwegians lutefisk",
    "Sweden": "Stockholm Swedish Europe krona Swedes meatballs",
    "Portugal": "Lisbon Portuguese Europe euro Portuguese bacalhau",
    "Thailand": "Bangkok Thai Asia baht Thais noodles",
}
# fmt: on


def _relations() -> dict[str, dict[str, str]]:
    relations: dict[str, dict[str, str]] = {}
    for columns, table in (
        (_ANIMAL_COLUMNS, _ANIMALS),
        (_COUNTRY_COLUMNS, _COUNTRIES),
    ):
        for word, cells in table.items():
            for column, cell in zip(columns, cells.split(), strict=True):
                relations.setdefault(column, {})[word] = cell
    return relations


RELATIONS: dict[str, dict[str, str]] = _relations()
"""name → {word: answer}: twelve relations, six on animals and six on countries."""

SEPARATORS = (" - ", ": ", " -> ", " = ")
MOST_EXAMPLES = 6


def mapping_lines(pairs: list[tuple[str, str]], separator: str) -> str:
    """The pairs, a line each."""
    return "".join(f"{word}{separator}{answer}\n" for word, answer in pairs)


def system_prompt(pairs: list[tuple[str, str]], separator: str, word: str) -> str:
    """The examples as a `System:` block and the word as a `User:` block.

    It ends before the line break: tokenizers join a break with the indent after it.
    """
    block = "".join(f"  {word}{separator}{answer}\n" for word, answer in pairs)
    return f"System:\n{block}\nUser:\n  {word}\n\nAssistant:"


def relation_document(generator: random.Random) -> str:
    """One relation shown by one to seven pairs, as lines or as a conversation."""
    relation = RELATIONS[generator.choice(sorted(RELATIONS))]
    count = generator.randint(1, MOST_EXAMPLES + 1)
    pairs = generator.sample(sorted(relation.items()), count)
    separator = generator.choice(SEPARATORS)
    if count > 1 and generator.random() < 0.35:
        *examples, (word, answer) = pairs
        return system_prompt(examples, separator, word) + f"\n  {answer}\n"
    return mapping_lines(pairs, separator)


def few_shot_tasks(
    n_examples: int,
    n_prompts: int,
    seed: int = DEFAULT_SEED,
    relations: dict[str, dict[str, str]] | None = None,
    separator: str = " - ",
) -> list[Task]:
    """Prompts that show `n_examples` pairs of a relation, then the word of another.

    The words asked for depend on `seed` alone: with the same seed, prompts with more or
    fewer examples ask for the same words of the same relations.

    Args:
        n_examples: 0 for zero-shot, at most the size of the smallest relation less one.
        n_prompts: how many prompts.
        relations: name → {word: answer}; the lab model's own by default.
        separator: what stands between a word and its answer. The prompt ends before the
            separator's last space, which belongs to the answer's first token.

    Raises:
        ValueError: if a relation has too few pairs, naming it.
    """
    relations = RELATIONS if relations is None else relations
    for name, pairs in relations.items():
        if len(pairs) <= n_examples:
            raise ValueError(
                f"The relation {name!r} has {len(pairs)} pairs: too few for "
                f"{n_examples} examples and a question. Add pairs or show fewer."
            )
    generator = random.Random(seed)
    tasks = []
    for _ in range(n_prompts):
        kind = generator.choice(sorted(relations))
        word = generator.choice(sorted(relations[kind]))
        others = sorted(set(relations[kind]) - {word})
        generator.shuffle(others)
        examples = [(other, relations[kind][other]) for other in others[:n_examples]]
        prompt = mapping_lines(examples, separator) + word + separator.rstrip()
        answer = relations[kind][word]
        also = {r[word] for r in relations.values() if word in r} - {answer}
        tasks.append(Task(prompt, answer, kind, frozenset(also)))
    return tasks


# --- problems with numbers ---

REASONING = "Let's think step by step."
ASSISTANT = "You are a careful assistant. Think step by step and end with the answer."
_PEOPLE = [
    "Ana",
    "Ben",
    "Carla",
    "David",
    "Emma",
    "Felix",
    "Gina",
    "Hugo",
    "Ida",
    "Jonas",
]
_THINGS = [
    "apples",
    "pears",
    "coins",
    "stamps",
    "books",
    "marbles",
    "cards",
    "pencils",
    "shells",
    "stones",
]
_GAINS = ("buys {n} more", "finds {n} more", "gets {n} more")
_LOSSES = ("gives away {n}", "loses {n}", "sells {n}")
_VEHICLES = ["train", "bus", "car", "boat", "cyclist", "truck"]
LARGEST_OPERAND = 60


def held_out(first: int, second: int) -> bool:
    """Whether this pair of operands (in either order) is kept out of the corpus.

    One pair in seven, scattered over both operands by a linear congruence.
    """
    low, high = sorted((first, second))
    return (5 * low + 3 * high) % 7 == 0


@dataclass(frozen=True)
class Problem:
    """A question in words, the steps that solve it, and the result."""

    question: str
    steps: tuple[str, ...]
    result: str
    kind: str

    def prompt(self, worked: bool, style: str = "plain") -> str:
        """The prompt that asks for the steps (`worked`) or for the answer at once.

        `style` is "plain" (`Question:` and `Answer:`) or "system" (`System:`, `User:`
        and an `Assistant:` block).
        """
        if style == "system":
            text = f"System:\n  {ASSISTANT}\n\nUser:\n  {self.question}\n\nAssistant:\n"
            return text + (f"  {REASONING}" if worked else "  The answer is")
        text = f"Question: {self.question}\nAnswer:"
        return text + (f" {REASONING}" if worked else " The answer is")

    def document(self, worked: bool, style: str = "plain") -> str:
        """The prompt with its continuation, as it stands in the corpus."""
        if worked:
            tail = "".join(f" {step}." for step in self.steps)
            tail += f" The answer is {self.result}."
        else:
            tail = f" {self.result}."
        return self.prompt(worked, style) + tail + "\n"


def _pair(
    generator: random.Random, held: bool, low: int, high: int, first: int | None = None
) -> tuple[int, int]:
    """Two operands, of which the first may be given, that are held out or are not."""
    while True:
        one = generator.randint(low, high) if first is None else first
        two = generator.randint(low, high)
        if held_out(one, two) == held:
            return one, two


def word_problem(generator: random.Random, steps: int, held: bool) -> Problem:
    """Somebody has things, gains some and loses some: `steps` sums and differences."""
    person, thing = generator.choice(_PEOPLE), generator.choice(_THINGS)
    while True:
        total = generator.randint(5, LARGEST_OPERAND)
        start, sentences, work = total, [], []
        for _ in range(steps):
            gains = total < 8 or (total < 100 and generator.random() < 0.5)
            high = LARGEST_OPERAND if gains else min(total - 1, LARGEST_OPERAND)
            choices = [n for n in range(2, high + 1) if held_out(total, n) == held]
            if not choices:
                break
            number = generator.choice(choices)
            after = total + number if gains else total - number
            phrase = generator.choice(_GAINS if gains else _LOSSES).format(n=number)
            pronoun = person if generator.random() < 0.5 else f"Then {person}"
            sentences.append(f"{pronoun} {phrase}.")
            work.append(f"{total} {'+' if gains else '-'} {number} = {after}")
            total = after
        if len(work) == steps:
            break
    question = (
        f"{person} has {start} {thing}. {' '.join(sentences)} "
        f"How many {thing} does {person} have?"
    )
    return Problem(question, tuple(work), str(total), f"{steps} steps")


def _hours(halves: int) -> str:
    if halves == 2:
        return "1 hour"
    return f"{halves // 2} hours" if halves % 2 == 0 else f"{halves / 2} hours"


def speed_problem(generator: random.Random, held: bool) -> Problem:
    """Average speed is distance over time, worked out by the half hour."""
    while True:
        halves = generator.randint(1, 10)
        per_half = generator.randint(5, LARGEST_OPERAND)
        if held_out(halves, per_half) == held:
            break
    vehicle, hours = generator.choice(_VEHICLES), _hours(halves)
    distance = halves * per_half
    article = f"a {vehicle}"
    question = (
        f"If {article} travels {distance} km in {hours}, "
        "what is its average speed in km/h?"
    )
    noun = "half hour" if halves == 1 else "half hours"
    steps = (
        f"{hours} is {halves} {noun}",
        f"{distance} / {halves} = {per_half} km in each half hour",
        f"{per_half} x 2 = {2 * per_half}",
    )
    return Problem(question, steps, str(2 * per_half), "speed")


def product_problem(generator: random.Random, held: bool) -> Problem:
    """Two numbers of two digits, multiplied by partial products."""
    first, second = _pair(generator, held, 11, 99)
    tens, units = 10 * (second // 10), second % 10
    steps = [f"{first} x {tens} = {first * tens}"]
    if units:
        steps += [
            f"{first} x {units} = {first * units}",
            f"{first * tens} + {first * units} = {first * second}",
        ]
    question = f"What is {first} x {second}?"
    return Problem(question, tuple(steps), str(first * second), "product")


def problem(generator: random.Random, kind: str, held: bool) -> Problem:
    """A problem of this kind: "1 steps" to "4 steps", "speed" or "product".

    Raises:
        ValueError: if there is no such kind.
    """
    if kind == "speed":
        return speed_problem(generator, held)
    if kind == "product":
        return product_problem(generator, held)
    match = re.fullmatch(r"([1-4]) steps", kind)
    if not match:
        raise ValueError(
            f"kind is {kind!r}; it can be '1 steps' to '4 steps', 'speed' or 'product'."
        )
    return word_problem(generator, int(match[1]), held)


def problems(kind: str, n_problems: int, seed: int = DEFAULT_SEED) -> list[Problem]:
    """Problems of one kind with operands that the lab model has never seen together.

    The same seed gives the same problems, so that prompts can be compared on them.
    """
    generator = random.Random(f"{seed} {kind}")
    return [problem(generator, kind, held=True) for _ in range(n_problems)]


def final_answer(text: str) -> str | None:
    """The number that a solution ends with, or None.

    It is the one after "The answer is", else the first number of the text (a direct
    answer, whose prompt already said "The answer is").
    """
    stated = re.findall(r"[Tt]he answer is\s*(-?[\d.]*\d)", text)
    if stated:
        return stated[-1]
    first = re.match(r"\s*(-?[\d.]*\d)", text)
    return first[1] if first else None


def first_line(text: str) -> str:
    """The first line that is not empty, stripped: the answer to a relation prompt."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def problem_documents(generator: random.Random, kinds: list[str]) -> Iterator[str]:
    """Endless documents about problems of these kinds, three in five of them worked."""
    while True:
        kind = generator.choice(kinds)
        worked = generator.random() < 0.6
        style = "system" if generator.random() < 0.15 else "plain"
        yield problem(generator, kind, held=False).document(worked, style)
