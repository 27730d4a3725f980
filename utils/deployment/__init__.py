"""From an adapter to an endpoint that answers, and its end (lesson 06).

- `artifact`: lay out and pack `model.tar.gz`; `python -m utils.deployment.artifact`.
- `checks`: what would keep an artifact from starting.
- `adapter_checks`: whether an adapter fits its base, as peft itself lays it out.
- `trial`: run an artifact once, and see whether its answers depend on its adapter.
- `deployment_model`: the entry point: requests, decoding parameters, answers. It is
  packed as `model.py` and imports nothing of ours.
- `serving`: serve an artifact on this machine, and time it.
- `aws`: session, role and bucket, real or offline; waiting for an endpoint; its log.
- `account`: what bills there, whoever made it: `python -m utils.deployment bill`.
- `left_behind`, `asking`: what is there under the course's names; how AWS is asked.
- `billing`: what was created, what it costs, and its deletion.
- `ledger`: the entries of what was created, and the bill.
- `prices`: AWS's price list, or the dated snapshot.
"""
