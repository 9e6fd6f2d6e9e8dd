"""What the document cannot say of a good request: values that only the service makes, and what goes with what.

Bad requests stay as they were made.
"""

import itertools
import os

import requests
import schemathesis

URL = os.environ["STREAMKEEP_URL"]
AUTHORIZATION = {"Authorization": "Bearer " + os.environ["STREAMKEEP_TOKEN"]}


def send(method, path, body=None):
    answer = requests.request(method, URL + path, json=body, headers=AUTHORIZATION, timeout=10)
    answer.raise_for_status()
    return answer.json()


def take(group, limit):
    deliveries = send("GET", f"/groups/{group}/next?limit={limit}")["deliveries"]
    return [delivery["lease"] for delivery in deliveries]


def made_by_the_service():
    """A cursor, leases, and the id of a parked event; all are real, and some hold."""
    events = [{"type": "order-placed", "data": None}] * 20
    cursor = send("POST", "/streams/order-12345/events", {"events": events})["cursor"]
    send("PUT", "/groups/mailer", {})
    send("PUT", "/groups/workers", {})
    leases = take("mailer", 10)
    send("POST", "/groups/mailer/nack", {"leases": leases[:3], "action": "park"})
    parked = [parked["id"] for parked in send("GET", "/groups/mailer/parked")["parked"]]
    return cursor, leases, parked


KEYS = itertools.count()
CURSOR, LEASES, PARKED = made_by_the_service()


@schemathesis.hook
def before_load_schema(context, schema):
    """Access control is on here: nobody is let in without credentials."""
    for path in schema["paths"].values():
        for operation in path.values():
            operation["security"] = [one for one in operation["security"] if one]


@schemathesis.hook
def before_add_examples(context, examples):
    """Those of the document, which `map_case` never sees; parameters without one are made up, against their patterns."""
    for case in examples:
        spare(case)
        mend(case)


@schemathesis.hook
def map_case(context, case):
    spare(case)
    if case.meta is not None and case.meta.generation.mode.is_positive:
        mend(case)
    elif "Last-Event-ID" in case.headers:
        # Only feeds read it.
        case.headers["Accept"] = "application/x-ndjson"
        case.query.pop("follow", None)
    return case


def spare(case):
    """The groups that are there stay there."""
    deletes = case.method == "DELETE" and case.operation.path == "/groups/{group}"
    if deletes and case.path_parameters["group"] in ("mailer", "workers"):
        case.path_parameters["group"] = "doomed"


def mend(case):
    mend_place(case.path_parameters, case.operation.path)
    mend_parameters(case.query, case.headers, case.operation.path)
    if isinstance(case.body, dict):
        mend_body(case.body)


def mend_place(place, path):
    """Every other name is one that is there."""
    if path.endswith(("/ack", "/nack", "/extend")):
        place["group"] = "workers"
    elif "group" in place and path != "/groups/{group}" and len(place["group"]) % 2:
        place["group"] = "mailer"
    if "id" in place and len(place["id"]) % 2:
        place["id"] = "order-12345"


def mend_parameters(query, headers, path):
    if "wait" in query:
        # Waits are awaited elsewhere; here they would only take time.
        query["wait"] = 0
        if path == "/groups/{group}":
            query["acked"] = CURSOR
    if "acked" in query:
        query["acked"] = CURSOR
    if "after" in query:
        query["after"] = PARKED[0] if "/parked" in path else CURSOR
    if "from_time" in query:
        query.pop("after", None)
        query.pop("direction", None)
    if query.get("direction") == "backward":
        query.pop("wait", None)
    if "partition" in query:
        query["partition"] = 0
    if "/parked" in path:
        if "ids" in query:
            query["ids"] = ",".join(PARKED)
        for one in [key for key in ("count", "stream", "ids") if key in query][1:]:
            del query[one]
    named(query)
    if "Last-Event-ID" in headers:
        headers["Last-Event-ID"] = CURSOR if path == "/events" else "1-00000000"
    if "follow" in query or "Last-Event-ID" in headers:
        # Lines of JSON that end at the head; other feeds do not end.
        headers["Accept"] = "application/x-ndjson"
        for key in ("follow", "wait", "direction", "to"):
            query.pop(key, None)
    if path.endswith("/{id}/events"):
        # An append has one condition at most, and a key of its own.
        for one in [key for key in ("If-Match", "If-None-Match") if key in headers][1:]:
            del headers[one]
        if "If-None-Match" in headers:
            headers["If-None-Match"] = "*"
        if "Streamkeep-Durability" in headers:
            # All that a Redis alone with appendfsync everysec gives.
            headers["Streamkeep-Durability"] = "memory"
        if "Idempotency-Key" in headers:
            headers["Idempotency-Key"] = f'"{next(KEYS)}"'


def named(members):
    """Names may not be the two that mean something in paths; patterns that say so are beyond many readers."""
    for key in ("consumer", "stream"):
        if members.get(key) in (".", ".."):
            members[key] = "dots"
    for key in ("category", "categories"):
        if key in members:
            members[key] = [name for name in members[key] if name not in (".", "..")]


def mend_body(body):
    named(body)
    for event in body.get("events", []):
        if "id" in event:
            event["id"] = f"{next(KEYS)} {event['id']}"[:128]
    if "leases" in body:
        # The first holds, if there is an event left.
        leases = take("workers", 1) + LEASES
        body["leases"] = [leases[number % len(leases)] for number, _ in enumerate(body["leases"])]
    if body.get("action") in ("park", "skip"):
        body.pop("delay_ms", None)
    if "ids" in body:
        body["ids"] = [PARKED[number % len(PARKED)] for number, _ in enumerate(body["ids"])]
    if "stream" in body:
        body.pop("categories", None)
    if "ordering" not in body or body["ordering"] == "none":
        body.pop("on_exhausted", None)
    # A group of one stream begins at a version, at no cursor.
    if isinstance(body.get("start"), str):
        body["start"] = "beginning" if "stream" in body else CURSOR
    if isinstance(body.get("to"), str):
        body["to"] = "beginning"
