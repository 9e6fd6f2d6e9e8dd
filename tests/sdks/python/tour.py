"""The tour by the generated Python client. STREAMKEEP_URL says where; with STREAMKEEP_TOKEN a key is needed there."""

import os

from streamkeep_client import AuthenticatedClient
from streamkeep_client.api.groups import ack, get_group, put_group, take_next
from streamkeep_client.api.log import read_log
from streamkeep_client.api.streams import append_events, read_stream
from streamkeep_client.models import (
    Ack,
    AckResult,
    AppendEventsInclude,
    AppendRequest,
    AppendResult,
    ConflictProblem,
    Deliveries,
    Direction,
    Group,
    GroupSettings,
    LogPage,
    Metadata,
    NewEvent,
    Ordering,
    Problem,
    StreamPage,
)

URL = os.environ.get("STREAMKEEP_URL", "http://127.0.0.1:7070")
TOKEN = os.environ.get("STREAMKEEP_TOKEN")


def streams(client: AuthenticatedClient) -> None:
    metadata = Metadata.from_dict({"user": "ada"})
    events = [
        NewEvent(type_="order-placed", data={"total": 42.5}),
        NewEvent(type_="order-paid", data={"by": "card"}, metadata=metadata),
    ]
    body = AppendRequest(events=events)
    appended = append_events.sync("order-12345", client=client, body=body, if_none_match="*")
    assert isinstance(appended, AppendResult), appended
    assert appended.version == 2

    conflict = append_events.sync(
        "order-12345", client=client, body=body, if_match='"1"', include=AppendEventsInclude.EVENTS
    )
    assert isinstance(conflict, ConflictProblem), conflict
    assert conflict.code == "version-conflict"
    assert conflict.current_version == 2
    assert conflict.expected_version == [1]
    assert conflict.events and conflict.events[0].type_ == "order-paid"

    versions: list[int] = []
    place: int | None = 1
    while place is not None:
        page = read_stream.sync("order-12345", client=client, from_=place, limit=1, direction=Direction.FORWARD)
        assert isinstance(page, StreamPage), page
        versions += [event.version for event in page.events]
        place = page.next_
    assert versions == [1, 2]

    log = read_log.sync(client=client, category=["order"])
    assert isinstance(log, LogPage), log
    assert log.events[1].metadata["user"] == "ada"


def group(client: AuthenticatedClient) -> None:
    settings = GroupSettings(categories=["order"], ordering=Ordering.STREAM, start="beginning")
    created = put_group.sync("mailer", client=client, body=settings)
    assert isinstance(created, Group), created
    assert created.settings.ordering == Ordering.STREAM

    taken = take_next.sync("mailer", client=client, consumer="ada", limit=10, wait=5)
    assert isinstance(taken, Deliveries), taken
    leases = [delivery.lease for delivery in taken.deliveries]
    assert len(leases) == 1, "in order: the second event waits for the first"
    acked = ack.sync("mailer", client=client, body=Ack(leases=leases))
    assert isinstance(acked, AckResult) and acked.acked == 1, acked

    missing = get_group.sync("nobody", client=client)
    assert isinstance(missing, Problem) and missing.code == "group-not-found", missing


def without_key() -> None:
    answer = read_stream.sync("order-12345", client=AuthenticatedClient(base_url=URL, token="none"))
    if TOKEN is None:
        assert isinstance(answer, StreamPage), answer
    else:
        assert isinstance(answer, Problem) and answer.code == "unauthorized", answer


if __name__ == "__main__":
    # The generator knows credentials that are needed or not, not ones that may be: where none are, any token does.
    client = AuthenticatedClient(base_url=URL, token=TOKEN or "none")
    streams(client)
    group(client)
    without_key()
