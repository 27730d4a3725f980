"""What a model's answers are worth (lesson 05).

- `scores`: losses, text measures, classes and differences, with 95% intervals.
- `answers`: whether an answer in free words is right, by rule or by likeness.
- `statements`: what a text states and denies: numbers in words, units, negations.
- `judging`: people who compare two answers without knowing whose they are.
- `retrieval`: looking an answer up in place of training it: by words, by meaning.
- `json_format`: a format task: a message in, JSON by a schema out.
- `report`: what was measured, for programs and for people.
"""
