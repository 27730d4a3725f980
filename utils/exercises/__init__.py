"""Checks for the exercises: a hint for each known mistake, praise for a right answer.

- `frame`: what all checks share, and how to add one.
- `self_check`: five questions at the end of each notebook, written into its notebook.
- `lesson_01`: language models.
- `lesson_02`: prompting.
- `lesson_03`: data set and template.
- `lesson_04`: training with LoRA.
- `lesson_05`: evaluation.
- `lesson_06`: deployment.
- `lesson_07`: API and web page.
- `lesson_08`: training jobs and the next version.
- `lesson_09`: the capstone's three exercises.
- `capstone`, `capstone_page`: its ten checks; the report that they fill.
- `experiment_01_inside_attention`: heads.
- `experiment_02_prompts_measured`: prompts, measured.
- `experiment_03_new_tokens`: tokens that are added to a vocabulary.
- `experiment_04_methods_compared`: ways to fine-tune.
- `experiment_04_quantisation`: 8 and 4 bits.
- `experiment_05_statistics`: the statistics of evaluation.
- `experiment_06_production`: what production adds.
- `experiment_08_several_workers`: rows to a step, and the loss of DPO.
"""
