"""From an adapter to an endpoint that answers, and its end (lesson 06).

- `artifact`: lay out and pack `model.tar.gz`; `python -m utils.deployment.artifact`.
- `packing`: the weights on their way into it: 16 bits, the room that they need.
- `checks`: what would keep an artifact from starting: all the rooms that follow.
- `findings`: what they share: findings, the report, where the parts lie.
- `archive_checks`, `secret_checks`: its members and layout; keys and tokens in it.
- `properties_checks`, `requirements_checks`: serving.properties; requirements.txt.
- `code_checks`, `async_checks`: the entry point; its replies in asynchronous mode.
- `model_checks`, `no_code_checks`: base and tokenizer; what vLLM would not serve.
- `adapter_checks`: whether an adapter fits its base, as peft itself lays it out.
- `notes_checks`: the notes that a request is answered from, and their encoder.
- `image`: what the container image has, and what its vLLM serves.
- `trial`: run an artifact once, and see whether its answers depend on its adapter.
- `deployment_model`: the entry point: requests, decoding parameters, answers. It is
  packed as `model.py` and imports nothing of ours.
- `deployment_search`: finds notes for it; packed as `notes_search.py`, and as alone.
- `notes`: write notes, their vectors and an encoder into an artifact.
- `serving`: serve an artifact on this machine, and time it.
- `load`, `replies`: many clients at once, `python -m utils.deployment load`; one reply.
- `aws`: session, role and bucket, real or offline; waiting for an endpoint; its log.
- `account`: what bills there, whoever made it: `python -m utils.deployment bill`.
- `left_behind`, `asking`: what is there under the course's names; how AWS is asked.
- `idle_stop`: AWS itself deletes an endpoint at a stated hour, whatever a kernel does.
- `billing`: what was created, what it costs, and its deletion.
- `attached`, `stacks`: alarms, scaling and stacks that a run made: noted, and deleted.
- `tables`: a run's tables, deleted with all that they hold.
- `ledger`: the entries of what was created, and the bill.
- `tagged`: what a run made on SageMaker: whose it is by its tag, and its deletion.
- `running`, `job_notes`: jobs, tuning, pipelines: stopped, billed, deleted; notes.
- `written`: what endpoints and jobs write by themselves: where, and its deletion.
- `prices`, `costs`: AWS's price list, or the dated snapshot; dollars per token.
- `request_checks`: requests held to botocore's models, where nothing plays them.
"""
