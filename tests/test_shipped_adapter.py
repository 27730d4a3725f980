"""The adapter that the course ships: small, of this base, and it answers from notes."""

from __future__ import annotations

import json

from safetensors import safe_open

from utils.course import FAQS_DATA, ROOT
from utils.dataset.faqs import load_faqs
from utils.dataset.open_book import context
from utils.dataset.splits import split
from utils.evaluation.answers import judge_for
from utils.models import generate, load_model, load_tokenizer, settings_for
from utils.templates import load_template
from utils.training.adapters import SHIPPED, load_adapter

SETTINGS = settings_for("smollm2")
FOLDER = SHIPPED["smollm2"]


def test_it_is_small_in_16_bits_and_names_no_machine() -> None:
    files = {file.name: file for file in FOLDER.iterdir()}
    assert sum(file.stat().st_size for file in files.values()) < 10e6
    with safe_open(files["adapter_model.safetensors"], "pt") as weights:
        names = weights.keys()
        kinds = {weights.get_slice(name).get_dtype() for name in names}
    assert kinds <= {"BF16", "F16"}
    config = json.loads(files["adapter_config.json"].read_text("utf-8"))
    assert config["base_model_name_or_path"] == "smollm2"
    assert str(ROOT) not in "".join(
        file.read_text("utf-8") for file in files.values() if file.suffix == ".json"
    )


def test_it_answers_from_notes_on_facts_that_nobody_trained() -> None:
    rows = split(load_faqs(FAQS_DATA))["fact"].to_list()[::21]
    tokenizer = load_tokenizer(SETTINGS)
    template = load_template(FOLDER, tokenizer)
    assert template.name == "chat"
    prompts = [
        template.prompt(row["instruction"], context([row["response"]])) for row in rows
    ]
    model = load_adapter(load_model(SETTINGS), FOLDER)

    def right() -> int:
        answers = generate(
            model, tokenizer, prompts, SETTINGS.max_new_tokens, stop=template.stop
        )
        return sum(judge_for(rows).right(answers, rows, answers.finished))

    tuned = right()
    with model.disable_adapter():
        untuned = right()
    assert len(rows) == 6
    assert tuned >= 5 > untuned
