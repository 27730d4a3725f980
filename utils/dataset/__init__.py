"""Questions and answers, from a file to rows to train with (lesson 03).

- `faqs`: read and clean a file of questions and answers, whatever its columns are.
- `facts`: the table behind the course's own questions, and when an answer is right.
- `splits`: which rows train, which choose the epoch, which test, and how many.
- `replay`: rows of what the base could do, mixed in so that tuning does not cost it.
- `open_book`: rows with notes to answer from: alone, among others, or in vain.
- `checks`: what to look at before training: `python -m utils.dataset check FILE`.
- `limits`: rows too long for a model: notes are cut, and what goes is named.
- `groups`: which rows belong together, by a column or by likeness.
- `formats`, `sheets`, `conversations`: the table in a file; Excel; chat messages.
- `decoding`, `columns`, `table`: encodings; names of columns; what these share.
- `leftovers`, `personal`: what exports leave in texts; addresses, numbers, keys.
- `meaning`, `languages`: the same question, answers that differ; which language.
"""
