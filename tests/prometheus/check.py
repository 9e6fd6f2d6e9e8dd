"""The alert rules and the dashboard on a real Prometheus, which scrapes a real service: check.py STREAMKEEP PROMETHEUS."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 60  # seconds
# Nothing is to be asked by way of a proxy.
ASK = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def ask(url, body=None, method=None):
    """The status of an answer, and its JSON if it is that."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with ASK(request, timeout=10) as answer:
            text, status, headers = answer.read(), answer.status, answer.headers
    except urllib.error.HTTPError as error:
        text, status, headers = error.read(), error.code, error.headers
    return status, json.loads(text) if headers.get_content_subtype().endswith("json") else None


def eventually(what, look):
    """Waits until `look` gives something that is true, and gives that."""
    end, last = time.monotonic() + PATIENCE, None
    while time.monotonic() < end:
        try:
            if found := look():
                return found
        except OSError as error:
            last = error
        time.sleep(0.1)
    sys.exit(f"not in {PATIENCE} s: {what} {last or ''}")


@contextlib.contextmanager
def running(log, *command):
    """A process, for as long as the block lasts."""
    with open(log, "wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


def use(service):
    """Does a little of everything, so that there is something to show."""
    def post(path, body, *expected):
        status, answer = ask(service + path, body)
        assert status in expected, (path, status, answer)
        return answer

    ask(f"{service}/groups/mailer", {}, "PUT")
    for number in range(8):
        post(f"/streams/order-{number}/events", {"events": [{"type": "order-placed", "data": number}]}, 201)
    ask(f"{service}/streams/no-such")
    taken = ask(f"{service}/groups/mailer/next?consumer=ada&limit=4")[1]["deliveries"]
    leases = [delivery["lease"] for delivery in taken]
    post("/groups/mailer/ack", {"leases": leases[:2]}, 200)
    post("/groups/mailer/nack", {"leases": leases[2:3], "action": "park"}, 200)


def check_expressions(prometheus, service):
    """All that the dashboard asks: that it is understood, and that there is an answer, or the reason why there is none."""
    dashboard = json.loads((ROOT / "deploy/grafana/streamkeep.json").read_text())
    wanted = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(wanted) > 20, wanted

    def look(expression):
        asked = expression.replace("$instance", ".*").replace("$__rate_interval", "1m")
        assert "$" not in asked, asked
        status, answer = ask(f"{prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": asked}))
        assert status == 200, (expression, answer)
        return answer["data"]["result"]

    for expression in wanted:
        # These show only what is wrong.
        if expression.endswith("> 0"):
            look(expression)
            continue
        # A rate needs two scrapes.
        eventually(f"an answer to {expression}", lambda: (use(service), look(expression))[1])
    return len(wanted)


def rules(prometheus):
    groups = ask(f"{prometheus}/api/v1/rules")[1]["data"]["groups"]
    return {rule["name"]: rule for group in groups for rule in group["rules"]}


def check_rules(prometheus):
    expected = re.findall(r"- alert: (\w+)", (ROOT / "deploy/prometheus/alerts.yml").read_text())
    eventually("all rules are evaluated", lambda: all(rule["health"] == "ok" for rule in rules(prometheus).values()))
    assert sorted(rules(prometheus)) == sorted(expected), rules(prometheus)
    return len(expected)


def is_state(prometheus, alert, state):
    return lambda: rules(prometheus)[alert]["state"] == state


def main(streamkeep, prometheus_program):
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as processes:
        folder = Path(folder)
        listen, admin, web = (f"127.0.0.1:{free_port()}" for _ in range(3))
        # What lasts minutes is to last a second here.
        alerts = re.sub(r"for: \w+", "for: 1s", (ROOT / "deploy/prometheus/alerts.yml").read_text())
        (folder / "alerts.yml").write_text(alerts)
        (folder / "prometheus.yml").write_text(f"""
global: {{ scrape_interval: 1s, evaluation_interval: 1s }}
rule_files: [alerts.yml]
scrape_configs:
  - job_name: streamkeep
    static_configs: [{{ targets: ["{admin}"] }}]
""")
        redis = [os.environ["STREAMKEEP_REDIS_SERVER"], "--port", "0", "--unixsocket", f"{folder}/redis.sock",
                 "--dir", str(folder)]
        server = processes.enter_context(running(folder / "redis.log", *redis))
        eventually("Redis is there", (folder / "redis.sock").exists)
        served = processes.enter_context(running(
            folder / "service.log", streamkeep, "serve", "--listen", listen, "--admin-listen", admin,
            "--redis-url", f"redis+unix://{folder}/redis.sock", "--redis-timeout-ms", "500"))
        eventually("the service is ready", lambda: ask(f"http://{admin}/readyz")[0] == 200)
        processes.enter_context(running(
            folder / "prometheus.log", prometheus_program, f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/prometheus", f"--web.listen-address={web}"))
        prometheus = f"http://{web}"

        eventually("Prometheus is ready", lambda: ask(f"{prometheus}/-/ready")[0] == 200)

        def targets():
            return ask(f"{prometheus}/api/v1/targets")[1]["data"]["activeTargets"]

        eventually("the service is scraped", lambda: [target["health"] for target in targets()] == ["up"])
        asked = check_expressions(prometheus, f"http://{listen}")
        evaluated = check_rules(prometheus)
        eventually("that an event is parked is told", is_state(prometheus, "StreamkeepParked", "firing"))
        assert is_state(prometheus, "StreamkeepRedisDown", "inactive")(), rules(prometheus)
        server.send_signal(signal.SIGTERM)
        eventually("that Redis is away is told", is_state(prometheus, "StreamkeepRedisDown", "firing"))
        processes.enter_context(running(folder / "redis.log", *redis))
        eventually("that Redis is back is seen", is_state(prometheus, "StreamkeepRedisDown", "inactive"))
        served.send_signal(signal.SIGTERM)
        eventually("that the service is away is told", is_state(prometheus, "StreamkeepDown", "firing"))
        print(f"prometheus: {asked} expressions of the dashboard answered, {evaluated} rules evaluated, 3 alerts fired")


main(*sys.argv[1:])
