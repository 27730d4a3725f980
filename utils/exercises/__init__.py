"""Checks for the exercises: a hint for each known mistake, praise for a right answer.

- `frame`: what all checks share, and how to add one.
- `lesson_01`: language models.
- `lesson_02`: prompting.
- `lesson_03`: data set and template.
- `lesson_04`: training with LoRA.
- `lesson_05`: evaluation.
- `lesson_06`: deployment.
- `experiment_01_inside_attention`: heads.
- `experiment_02_prompts_measured`: prompts, measured.
- `experiment_05_statistics`: the statistics of evaluation.
"""
