// The tour by the generated TypeScript client. STREAMKEEP_URL says where; with STREAMKEEP_TOKEN a key is needed there.
import assert from "node:assert/strict";
import createClient from "openapi-fetch";
import type { components, paths } from "./streamkeep.js";

type GroupSettings = components["schemas"]["GroupSettings"];
type NewEvent = components["schemas"]["NewEvent"];

const baseUrl = process.env["STREAMKEEP_URL"] ?? "http://127.0.0.1:7070";
const token = process.env["STREAMKEEP_TOKEN"];
// Of the forms that an answer may have, these: the others are feeds.
type Json = "application/json" | "application/problem+json";
const client = createClient<paths, Json>({ baseUrl, headers: token ? { Authorization: `Bearer ${token}` } : {} });
const order = { id: "order-12345" };

async function streams(): Promise<void> {
  const events: NewEvent[] = [
    { type: "order-placed", data: { total: 42.5 } },
    { type: "order-paid", data: { by: "card" }, metadata: { user: "ada" } },
  ];
  const first = { path: order, header: { "If-None-Match": "*" } };
  const appended = await client.POST("/streams/{id}/events", { params: first, body: { events } });
  assert.equal(appended.data?.version, 2);
  assert.equal(appended.response.headers.get("etag"), '"2"');

  const stale = { path: order, query: { include: "events" as const }, header: { "If-Match": '"1"' } };
  const { error, response } = await client.POST("/streams/{id}/events", { params: stale, body: { events } });
  assert.equal(response.status, 409);
  assert.ok(error && "current_version" in error);
  assert.equal(error.code, "version-conflict");
  assert.equal(error.current_version, 2);
  assert.deepEqual(error.expected_version, [1]);
  assert.equal(error.events?.[0]?.type, "order-paid");

  const versions: number[] = [];
  let from: number | null = 1;
  while (from !== null) {
    const query: { from: number; limit: number } = { from, limit: 1 };
    const page = await client.GET("/streams/{id}", { params: { path: order, query } });
    assert.ok(page.data);
    versions.push(...page.data.events.map((event) => event.version));
    from = page.data.next;
  }
  assert.deepEqual(versions, [1, 2]);

  const log = await client.GET("/events", { params: { query: { category: ["order"] } } });
  assert.deepEqual(log.data?.events[1]?.metadata, { user: "ada" });
}

async function group(): Promise<void> {
  const mailer = { group: "mailer" };
  const body: GroupSettings = { categories: ["order"], ordering: "stream", start: "beginning" };
  const created = await client.PUT("/groups/{group}", { params: { path: mailer }, body });
  assert.equal(created.response.status, 201);
  assert.equal(created.data?.settings.ordering, "stream");

  const wanted = { path: mailer, query: { consumer: "ada", limit: 10, wait: 5 } };
  const taken = await client.GET("/groups/{group}/next", { params: wanted });
  const leases = (taken.data?.deliveries ?? []).map((delivery) => delivery.lease);
  assert.equal(leases.length, 1, "in order: the second event waits for the first");
  const acked = await client.POST("/groups/{group}/ack", { params: { path: mailer }, body: { leases } });
  assert.equal(acked.data?.acked, 1);

  const missing = await client.GET("/groups/{group}", { params: { path: { group: "nobody" } } });
  assert.equal(missing.error?.code, "group-not-found");
}

async function withoutKey(): Promise<void> {
  const answer = await createClient<paths, Json>({ baseUrl }).GET("/streams/{id}", { params: { path: order } });
  assert.equal(answer.response.status, token ? 401 : 200);
  assert.equal(answer.error?.code, token ? "unauthorized" : undefined);
}

await streams();
await group();
await withoutKey();
