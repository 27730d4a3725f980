"""From endpoint to product: API, page, monitoring, A/B and rollback (lesson 07).

- `service`: what AWS Lambda runs: the app. It imports nothing of ours but itself.
- `graph`: the template's parts and ties, from page to endpoint, for the picture.
- `expansion`, `faults`: the template as CloudFormation sees it; what is wrong with it.
- `stack`: pack the function, deploy the template, remove what it made.
- `gateway`: what CloudFront and API Gateway do, played on this machine.
- `serving`: gateway and app in uvicorn, in a process of their own.
- `runtime_api`: Lambda's Runtime API, under which AWS's own Python client runs.
- `monitoring`: log lines into tables; percentiles, cost per thousand answers, drift.
- `rollout`: A/B by production variants: shift, gather, decide, promote, roll back.
- `versions`: a registry of versions on SageMaker's Model Registry.
"""
