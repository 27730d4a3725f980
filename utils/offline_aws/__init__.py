"""A stand-in for AWS on this machine: no learner has to open it.

- `control_plane`: starts and stops it, and points every client at it.
- `moto_patches`: what moto lacks.
- `endpoints`: containers that start, serve, are replaced and stop.
- `invocations`: requests to endpoints.
- `names`: region, account, bucket and role.
"""
