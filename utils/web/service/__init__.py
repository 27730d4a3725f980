"""The app that AWS Lambda runs, and uvicorn on this machine.

It is packed as it stands, so it imports nothing of ours but itself.

- `settings`: the function's environment variables, checked.
- `schema`: requests, replies and problems.
- `app`: the FastAPI app: routes, limits, request ids, errors.
- `endpoint`: the way to the model: time-outs, retries, circuit breaker, streams.
- `records`: answers and feedback in a DynamoDB table.
- `observe`: a log line and metrics for each request.
- `lambda_function`: the handler of the function.
"""
