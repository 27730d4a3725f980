"""The map of `utils/`: one line a room; a folder's `__init__.py` explains its files.

What all lessons share:

- `helpers`: the prompt template, and the way from a row to a training batch.
- `templates`: a model's own chat template or ours; it travels with the adapter.
- `course`: the switches `COURSE_…`, preflight, claims, the seed.
- `models`: the table of models, each with LoRA rank and the rest; loading, asking.
- `encoder`: sentences as vectors, so that texts can be compared by meaning.
- `fetch`: SmolLM2 and MiniLM, from wheels on the package index.
- `machine`: processor or card, how threads wait, and which precision is faster.
- `tasks`: few-shot relations, rules and word problems that the lab model is asked.
- `ngrams`: next tokens from counts, to compare a model with.
- `colours`: the colours of plots, report and drawings.
- `files`: files and folders written whole or not at all.
- `temporary`: files and folders for a while, cleared by the next run after a kill.
- `origins`: which model and data a file of the build folder was made from.

A wing for each lesson's subject:

- `dataset`: lesson 03, questions and answers, from a file to rows to train with.
- `training`: lesson 04, fine-tuning with LoRA and in other ways.
- `evaluation`: lesson 05, what a model's answers are worth.
- `deployment`: lesson 06, from an adapter to an endpoint that answers, and its end.
- `web`: lesson 07, from an endpoint to a product: API, page, monitoring, rollout.
- `jobs`: lesson 08, training jobs: entry script, workers, tuning, retraining.

What shows, checks and runs the lessons:

- `display`: text in colour, and the plots.
- `exercises`: a check for each exercise, with a hint for each known mistake.
- `run`: executes lessons and experiments and prints the table: `make run`.
- `record`: measures the main road with one model: `python -m utils.record smollm2`.
- `road_map`: draws the road map's pictures: `python -m utils.road_map`.
- `whole`: draws the whole, a lesson's part lit: `python -m utils.whole`.
- `site`: the course as a static site, from the stored outputs: `make site`.
- `classroom`: checks before a class, copies to teach with, the newest versions.

Stand-ins and the workshop, which no learner has to open:

- `offline_aws`: AWS on this machine: endpoints that start, answer and stop.
- `djl_python`: DJL Serving on this machine: its layout, its rules, its workers.
- `lab_model`: how the lab model was made, and the questions of `data/` from its tables.
"""

from utils.machine import hide_machine_lines, prepare_openmp, prepare_output

# Here, because PyTorch's OpenMP library reads its settings when it is loaded: whoever
# imports anything of `utils` first (notebooks, the endpoint's server, tests) gets them,
# and so do the processes that they start. It takes a tenth of a second.
prepare_openmp()
# Here as well, because bitsandbytes logs such a line when peft imports it.
hide_machine_lines()
# And here, because any command may print what a terminal has no code for.
prepare_output()
