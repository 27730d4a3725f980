"""A stand-in for AWS on this machine: no learner has to open it.

- `control_plane`: starts and stops it, and points every client at it.
- `http_server`: bounded threads, and a limit to each wait.
- `gate`: lets this run's own clients in, and nobody else.
- `signatures`: whether a request was signed with this run's key.
- `operations`: which operation a request calls, by botocore's models.
- `errors`: AWS's errors, in the form of each protocol.
- `checks`: what has to be right before moto sees a call.
- `parameters`: held to botocore's models, in AWS's words.
- `quotas`: those of COURSE_QUOTAS, to rehearse with.
- `references`: what a call refers to must be there.
- `images`: whether there can be such a container image.
- `unplayed`: calls that moto does not play are recognised before they are made.
- `moto_patches`, `wrapping`: what moto lacks.
- `endpoints`: containers that start, serve, are replaced and stop.
- `schedules`: deletes an endpoint at the hour that EventBridge Scheduler was given.
- `invocations`: requests to endpoints.
- `asynchronous`: requests that are answered later, in S3.
- `logs`: what containers write, in CloudWatch Logs while they run.
- `metrics`, `alarms`: what CloudWatch is told of an endpoint's requests; its alarms.
- `shifting`: how an update moves the traffic, and when it moves back.
- `scaling`: what scales endpoints, and what that forbids.
- `names`: region, account, bucket and role.
"""
