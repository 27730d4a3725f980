"""What tests share; no file in here is a test.

lessons: runs lessons and reads what their notebooks claim.
wrong_answers: mistakes planted in the exercises, a file for each lesson.
interrupted_notebook: a program that breaks notebook 06 off at its cells.
endpoints: endpoints of the offline AWS with a small entry point.
tiny_models: a tokenizer and a GPT-NeoX, made in a moment.
tiny_artifact: a tiny base, an adapter, and the archive made of them.
entry_point: calls the deployed entry point in this process; bad requests.
resumable: a training run that may be killed at any moment.
reading_time: how long a lesson takes, by a stated rule; writes the numbers into it.
second_edition: rules for lessons that state their reading time.
word_problems: reads problems with numbers back from the text alone.
machines: machines to choose settings for.
"""
