"""Search in the archive's notes: packed beside the entry point as `notes_search.py`.

The entry point loads it only where `option.notes` names a folder. There lie

    notes.jsonl           a note a line: {"id": …, "text": …, "questions": […]}
    vectors.safetensors   their vectors, where `option.encoder` names an encoder

The search is the course's (utils/evaluation/retrieval.py, `note_search`): BM25 over
each note's questions and text, and with an encoder 0.1 of it, standardised, plus 1.0 of
the best cosine among the note's passages, standardised. Notes of equal score keep their
order, and those that are too far from the question are not shown.

The file stands alone, as the entry point does. torch and transformers are imported only
for an encoder, which computes on the CPU: the GPU is the model's.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOTES_FILE = "notes.jsonl"
VECTORS_FILE = "vectors.safetensors"
VECTORS, OWNERS, MADE_OF = "vectors", "owners", "notes"  # names in that file
POOLING_FILE = "1_Pooling/config.json"
READS_FILE = "sentence_bert_config.json"
ENCODER_FILES = ("config.json", "tokenizer.json", "model.safetensors", POOLING_FILE)

# Equal to those of utils/evaluation/retrieval.py and of its library bm25s.
FAR = 0.3  # a cosine below it: the note is about something else
BY_WORDS, BY_MEANING = 0.1, 1.0
K1, B = 1.5, 0.75
WORD = re.compile(r"\b\w+\b")
# Equal to those of utils/encoder.py.
READS = 256  # word pieces, where the encoder does not say
SPECIAL_PIECES = 2
OVERLAP = 0.25

LONGEST_NOTE = 20_000  # characters, as the entry point's limit for a context
LONGEST_ID = 200  # characters; ids come back with each answer
BUILD_AGAIN = "Build the artifact again with artifact.build(…, notes=…)"


class NotesError(ValueError):
    """Notes that cannot be searched: where, what was found, and what to do."""

    def __init__(self, where: str, what: str, remedy: str):
        super().__init__(f"{where}: {what}. {remedy}.")
        self.where, self.what, self.remedy = where, what, remedy


@dataclass(frozen=True)
class Note:
    """A text to answer from.

    Attributes:
        id: what a reply calls it.
        text: what the model reads.
        questions: by which it is found, together with its text.
    """

    id: str
    text: str
    questions: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The text by which the note is found."""
        return " ".join((*self.questions, self.text))


# --- reading --------------------------------------------------------------------------


def read_note(value: Any, where: str) -> Note:
    """Check a row and return it as a note.

    Args:
        value: with `id`, `text` and perhaps `questions`.
        where: the row's place, for the message.

    Raises:
        NotesError: naming the row and its field.
    """
    expected = 'Write {"id": …, "text": …}, and perhaps "questions": […]'
    if not isinstance(value, dict):
        raise NotesError(where, f"is no object but {_short(value)}", expected)
    unknown = [name for name in value if name not in ("id", "text", "questions")]
    if unknown:
        raise NotesError(where, f"has an unknown field {_short(unknown[0])}", expected)
    questions = value.get("questions")
    questions = [] if questions is None else questions
    if not isinstance(questions, list | tuple):
        what = f"questions is no list of texts but {_short(questions)}"
        raise NotesError(where, what, expected)
    texts = [("id", value.get("id"), LONGEST_ID)]
    texts += [("text", value.get("text"), LONGEST_NOTE)]
    texts += [(f"questions[{i}]", q, LONGEST_NOTE) for i, q in enumerate(questions)]
    for name, text, most in texts:
        if not isinstance(text, str) or not text.strip():
            what = f"{name} is no text but {_short(text)}"
            raise NotesError(where, what, expected)
        if len(text) > most:
            what = f"{name} has {len(text)} characters; at most {most} are allowed"
            remedy = "Shorten it" if name == "id" else "Cut it into several notes"
            raise NotesError(where, what, remedy)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            what = f"{name} holds half a surrogate pair at character {error.start}"
            raise NotesError(where, what, "Correct the text") from None
    return Note(value["id"], value["text"], tuple(questions))


def check_notes(notes: Sequence[Note], where: str) -> None:
    """Check what only all notes together show.

    Raises:
        NotesError: if there are none, none has a word, or an id is there twice.
    """
    if not notes:
        raise NotesError(where, "holds no note", "Give at least one")
    if not any(map(_words, (note.key for note in notes))):
        raise NotesError(where, "no note has a word", "Give notes with words")
    (name, times), *_ = Counter(note.id for note in notes).most_common(1)
    if times > 1:
        what = f"the id {_short(name)} is there {times} times"
        raise NotesError(where, what, "Give each note an id of its own")


def read_notes(path: Path) -> list[Note]:
    """Read a file of notes, one a line; empty lines count for nothing.

    Raises:
        NotesError: if it is missing, no UTF-8, empty, or has a broken line.
    """
    where = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        raise NotesError(where, "is missing", BUILD_AGAIN)
    try:
        # A text may hold other ends of line, such as U+2028: JSON need not escape them.
        lines = path.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        what = f"is not UTF-8 (byte {error.start})"
        raise NotesError(where, what, "Save it as UTF-8") from None
    notes = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{where}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            what = f"is no JSON ({error})"
            remedy = "Write one note a line, as JSON"
            raise NotesError(place, what, remedy) from None
        notes.append(read_note(value, place))
    check_notes(notes, where)
    return notes


def fingerprint(notes: Path) -> str:
    """Return the SHA-256 of the file of notes: vectors belong to one of them."""
    return hashlib.sha256(notes.read_bytes()).hexdigest()


def read_vectors(folder: Path, count: int, width: int) -> tuple[Any, list[int]]:
    """Read the vectors of the notes' passages.

    Args:
        folder: of the notes.
        count: of notes.
        width: of the encoder's vectors.

    Returns:
        Tensor of shape (passages, width), float32, and the place of each passage's
        note, in the order of the notes.

    Raises:
        NotesError: if they are missing or unreadable, of another number or width, or
            of other notes.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    path = folder / VECTORS_FILE
    where = f"{folder.name}/{VECTORS_FILE}"
    if not path.is_file():
        raise NotesError(where, "is missing beside option.encoder", BUILD_AGAIN)
    try:
        with safe_open(str(path), framework="pt") as file:
            vectors, owners = file.get_tensor(VECTORS), file.get_tensor(OWNERS)
            made_of = (file.metadata() or {}).get(MADE_OF)
    except (SafetensorError, OSError) as error:
        what = f"cannot be read as vectors of notes ({error})"
        raise NotesError(where, what, BUILD_AGAIN) from None
    if vectors.dim() != 2 or vectors.shape[1] != width:
        what = f"holds vectors of shape {list(vectors.shape)}, and the encoder's have "
        raise NotesError(where, f"{what}{width} numbers each", BUILD_AGAIN)
    whole = not owners.is_floating_point() and owners.shape == vectors.shape[:1]
    places = owners.tolist() if whole else []
    if len(places) != len(vectors) or sorted(set(places)) != list(range(count)):
        have = len(set(places))
        what = f"holds vectors of {have} notes, and {NOTES_FILE} has {count}"
        raise NotesError(where, what, BUILD_AGAIN)
    if made_of != fingerprint(folder / NOTES_FILE):
        what = f"was made of another {NOTES_FILE} than lies beside it"
        raise NotesError(where, what, BUILD_AGAIN)
    vectors = vectors.to(torch.float32)
    if not torch.isfinite(vectors).all():
        raise NotesError(where, "holds what is no finite number", BUILD_AGAIN)
    return vectors, places


def check_encoder(folder: Path) -> tuple[int, int]:
    """Check an encoder's files, its weights apart.

    Returns:
        how many numbers its vectors have, and how many word pieces it reads at once.

    Raises:
        NotesError: if a file is missing or broken, or it pools in another way than by
            the mean over tokens.
    """
    remedy = "Pack a whole one with artifact.build(…, encoder=folder)"
    if not folder.is_dir():
        raise NotesError(folder.name, "is missing: option.encoder names it", remedy)
    for name in ENCODER_FILES:
        if not (folder / name).is_file():
            raise NotesError(f"{folder.name}/{name}", "is missing", remedy)
    settings = {}
    for name in ("config.json", POOLING_FILE, READS_FILE):
        path = folder / name
        try:
            there = path.is_file()
            settings[name] = json.loads(path.read_text("utf-8")) if there else {}
        except ValueError as error:
            where = f"{folder.name}/{name}"
            raise NotesError(where, f"is no JSON ({error})", remedy) from None
        if not isinstance(settings[name], dict):
            raise NotesError(f"{folder.name}/{name}", "is no JSON object", remedy)
    pooling = settings[POOLING_FILE]
    modes = [name for name, on in pooling.items() if name.startswith("pooling") and on]
    if modes != ["pooling_mode_mean_tokens"]:
        what = f"asks for {modes}; only the mean over tokens is known"
        raise NotesError(f"{folder.name}/{POOLING_FILE}", what, "Take another encoder")
    width = settings["config.json"].get("hidden_size")
    reads = settings[READS_FILE].get("max_seq_length", READS)
    if not isinstance(width, int) or not isinstance(reads, int) or reads < 8:
        what = f"has hidden_size {width!r} and reads {reads!r} word pieces"
        raise NotesError(f"{folder.name}/config.json", what, "Take another encoder")
    return width, reads


# --- searching ------------------------------------------------------------------------


class Notes:
    """The notes of an archive, to be searched; one search at a time."""

    def __init__(self, folder: Path, encoder: Path | None = None):
        """Read notes, and vectors and encoder where one is named.

        Args:
            folder: holds notes.jsonl.
            encoder: the encoder's folder; None to search by words alone.

        Raises:
            NotesError: (a `ValueError`) if anything of it cannot be used.
        """
        self.notes = read_notes(folder / NOTES_FILE)
        self._by_words = ByWords([note.key for note in self.notes])
        self._by_meaning = None
        if encoder is not None:
            self._by_meaning = ByMeaning(folder, encoder, len(self.notes))

    def find(self, question: str, count: int) -> list[Note]:
        """Return the notes that fit best, the best first, without those that are far.

        Of the `count` best those are left out that have no word in common with the
        question or, with an encoder, a cosine below 0.3.
        """
        scores = by_words = self._by_words.scores(question)
        far = [score <= 0 for score in by_words]
        if self._by_meaning is not None:
            cosines = self._by_meaning.cosines(question)
            far = [cosine < FAR for cosine in cosines]
            pairs = zip(_standard(by_words), _standard(cosines), strict=True)
            scores = [BY_WORDS * some + BY_MEANING * other for some, other in pairs]
        # Python's sort leaves equals in their order.
        order = sorted(range(len(scores)), key=lambda place: -scores[place])[:count]
        return [self.notes[place] for place in order if not far[place]]


class ByWords:
    """BM25 as the library bm25s computes it by default (Lucene's form).

    Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond,
    Foundations and Trends in Information Retrieval 3, 2009.
    """

    def __init__(self, texts: Sequence[str]):
        """Count the words of the texts, of which one at least has some."""
        documents = [Counter(_words(text)) for text in texts]
        lengths = [counts.total() for counts in documents]
        average = sum(lengths) / len(lengths)
        self._count = len(documents)
        self._weights: dict[str, dict[int, float]] = {}  # word → place → its score
        for place, (counts, length) in enumerate(zip(documents, lengths, strict=True)):
            damping = K1 * (1 - B + B * length / average)
            for word, times in counts.items():
                share = times / (damping + times)
                self._weights.setdefault(word, {})[place] = share
        for places in self._weights.values():
            holders = len(places)
            rarity = math.log(1 + (self._count - holders + 0.5) / (holders + 0.5))
            for place in places:
                places[place] *= rarity

    def scores(self, question: str) -> list[float]:
        """Return how well each text fits; 0 where no word is in common."""
        totals = [0.0] * self._count
        for word, times in Counter(_words(question)).items():
            for place, weight in self._weights.get(word, {}).items():
                totals[place] += times * weight
        return totals


class ByMeaning:
    """Cosines of a sentence encoder's vectors, as utils/encoder.py computes them.

    Reimers and Gurevych, Sentence-BERT, arXiv 1908.10084.
    """

    def __init__(self, folder: Path, encoder: Path, count: int):
        """Load the encoder, and the vectors of so many notes.

        Raises:
            NotesError: if either cannot be used.
        """
        import torch
        from transformers import AutoModel, AutoTokenizer

        width, reads = check_encoder(encoder)
        self._vectors, self._owners = read_vectors(folder, count, width)
        self._count, self._most = count, reads - SPECIAL_PIECES
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                str(encoder), local_files_only=True
            )
            self._model = AutoModel.from_pretrained(
                str(encoder), local_files_only=True, dtype=torch.float32
            ).eval()
        except Exception as error:  # safetensors and tokenizers have their own kinds
            what = f"cannot be loaded ({type(error).__name__}: {str(error)[:80]})"
            remedy = "Pack a whole one with artifact.build(…, encoder=folder)"
            raise NotesError(encoder.name, what, remedy) from error

    def cosines(self, question: str) -> list[float]:
        """Return for each note the cosine of its best passage with the question."""
        found = (self._vectors @ self.vector(question)).tolist()
        best = [-1.0] * self._count
        for place, cosine in zip(self._owners, found, strict=True):
            best[place] = max(best[place], cosine)
        return best

    def vector(self, text: str) -> Any:
        """Return the vector of a text, of length one, or zero if it has no word piece.

        Texts are computed one at a time: no neighbour can change a vector.

        Returns:
            Tensor of shape (width,), float32.
        """
        import torch

        # tokenizer.json would pad to 128 pieces, and cut there.
        ids = self._tokenizer(
            text,
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]
        start, end = self._tokenizer.cls_token_id, self._tokenizer.sep_token_id
        total = torch.zeros(self._vectors.shape[1], dtype=torch.float64)
        for first, last in _spans(len(ids), self._most):
            row = torch.tensor([[start, *ids[first:last], end]])
            with torch.inference_mode():
                states = self._model(
                    input_ids=row, attention_mask=torch.ones_like(row)
                ).last_hidden_state
                mean = states.float().mean(dim=1)
                total += torch.nn.functional.normalize(mean, dim=1)[0]
        length = float(total.norm())
        return (total / length if length else total).to(torch.float32)


def _spans(count: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield where overlapping windows over so many word pieces begin and end."""
    if count <= width:
        yield from [(0, count)] if count else []
        return
    step = width - int(width * OVERLAP)
    number = -(-(count - width) // step) + 1
    for place in range(number):
        start = round(place * ((count - width) / (number - 1)))
        yield start, start + width


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _standard(scores: Sequence[float]) -> list[float]:
    """Return scores with mean 0 and deviation 1; 0 if all are equal."""
    if min(scores) == max(scores):
        return [0.0] * len(scores)
    mean = math.fsum(scores) / len(scores)
    spread = math.sqrt(math.fsum((one - mean) ** 2 for one in scores) / len(scores))
    return [(one - mean) / spread for one in scores]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
