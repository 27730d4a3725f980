"""How the shipped lab model was made: commands that no other module imports.

- `corpus`: what it reads; writes `data/lab_questions.csv` as well.
- `train`: tokenizer and weights, from nothing; writes `data/lab_model`.
- `evaluate`: the examination, whose tables stand in the model card.
"""
