#!/bin/bash
# Stops a JupyterLab space of SageMaker Studio in which nothing has happened for a while.
# A lifecycle configuration runs it when the space starts; it goes on in the background.
# Idle means: no kernel computes, and kernels, terminals and the browser were silent for
# IDLE_MINUTES. An open tab without work does not count. It asks JupyterLab's own REST
# API, installs nothing, and needs the right to sagemaker:DeleteApp.
set -eu

IDLE_MINUTES=${IDLE_MINUTES:-60}
LOOK_SECONDS=${LOOK_SECONDS:-120}
SERVER=${SERVER:-http://127.0.0.1:8888/jupyterlab/default}
METADATA=${METADATA:-/opt/ml/metadata/resource-metadata.json}
# What is written here goes to CloudWatch.
LOG=${LOG:-/var/log/apps/app_container.log}
PROGRAM=$(mktemp)

cat > "$PROGRAM" <<'PROGRAM_END'
import datetime, json, os, subprocess, time, urllib.error, urllib.request

idle = 60 * float(os.environ["IDLE_MINUTES"])
look = float(os.environ["LOOK_SECONDS"])
server = os.environ["SERVER"].rstrip("/")
# Nothing of this machine is asked through a proxy.
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def say(text):
    print(time.strftime("%Y-%m-%dT%H:%M:%S"), "course-auto-stop:", text, flush=True)


def ask(path):
    with opener.open(server + "/api/" + path, timeout=30) as reply:
        return json.load(reply)


def terminals():
    """What terminals there are; none where JupyterLab runs without them."""
    try:
        return ask("terminals")
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return []
        raise


def seconds_since(text):
    then = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    return (datetime.datetime.now(datetime.timezone.utc) - then).total_seconds()


def silence():
    """Seconds since anything happened; 0 while a kernel computes."""
    status, kernels = ask("status"), ask("kernels")
    if any(one.get("execution_state") != "idle" for one in kernels):
        return 0
    times = [one["last_activity"] for one in kernels + terminals()]
    # The time of the server itself: its start, or the last request of a person.
    times.append(status.get("last_activity") or status["started"])
    return min(seconds_since(one) for one in times)


def stop():
    with open(os.environ["METADATA"]) as file:
        app = json.load(file)
    command = ["aws", "sagemaker", "delete-app", "--domain-id", app["DomainId"]]
    command += ["--app-type", app.get("AppType", "JupyterLab")]
    command += ["--app-name", app.get("ResourceName", "default")]
    command += ["--region", app["ResourceArn"].split(":")[3]]
    if "SpaceName" in app:
        command += ["--space-name", app["SpaceName"]]
    else:
        command += ["--user-profile-name", app["UserProfileName"]]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        say("it could not be stopped: " + done.stderr.strip())
    return done.returncode == 0


def watch():
    while True:
        time.sleep(look)
        try:
            quiet = silence()
            if quiet >= idle:
                say("nothing has happened for %d minutes: stopping" % (quiet / 60))
                if stop():
                    return
        except Exception as error:
            # A server that does not answer now is asked again.
            say("no answer: %r" % error)


watch()
PROGRAM_END

export IDLE_MINUTES LOOK_SECONDS SERVER METADATA
# The start of the space must not wait for it.
nohup python3 "$PROGRAM" >> "$LOG" 2>&1 < /dev/null &
echo "course-auto-stop: after $IDLE_MINUTES idle minutes"
