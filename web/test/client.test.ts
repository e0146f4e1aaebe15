import assert from "node:assert/strict";
import { afterEach, test } from "node:test";

/** The parts of a browser that the modules use when they are loaded. */
const stored = new Map<string, string>();
Object.assign(globalThis, {
  sessionStorage: {
    getItem: (key: string) => stored.get(key) ?? null,
    setItem: (key: string, value: string) => void stored.set(key, value),
  },
  location: { hash: "#/chat/abc" },
  addEventListener: () => undefined,
});

const { getJson, getStream, postJson, postStream } = await import("../src/api/client.ts");
const { ApiError, ConnectionError, isAbort } = await import("../src/api/errors.ts");
const { giveKey, keyQuestion } = await import("../src/api/key.ts");
const { hashOf, parseHash, route } = await import("../src/router.ts");

const realFetch = globalThis.fetch;
afterEach(() => void (globalThis.fetch = realFetch));

interface Sent {
  url: string;
  init: RequestInit;
}

/** Have requests answered in turn. Return what is sent. */
function answer(...answers: (Response | Error)[]): Sent[] {
  const sent: Sent[] = [];
  globalThis.fetch = async (url, init = {}) => {
    sent.push({ url: String(url), init });
    const next = answers.shift()!;
    if (next instanceof Error) throw next;
    return next;
  };
  return sent;
}

function json(body: unknown, status = 200, headers: Record<string, string> = {}): Response {
  return new Response(JSON.stringify(body), { status, headers });
}

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const item of items) found.push(item);
  return found;
}

function hasCode(code: string | null, status: number): (error: unknown) => boolean {
  return (error) => error instanceof ApiError && error.code === code && error.status === status;
}

test("JSON is read, and sent as JSON", async () => {
  const sent = answer(json({ a: 1 }), json({ b: 2 }));
  assert.deepEqual(await getJson("v1/models"), { a: 1 });
  assert.deepEqual(await postJson("v1/plan", { model: "m" }), { b: 2 });
  assert.equal(sent[0]!.init.method, "GET");
  assert.equal(sent[1]!.init.body, '{"model":"m"}');
  assert.equal((sent[1]!.init.headers as Record<string, string>)["Content-Type"], "application/json");
});

test("errors have the server's words and code", async () => {
  const body = { error: { message: "too long", code: "context_length_exceeded", param: "messages" } };
  answer(json(body, 400));
  await assert.rejects(getJson("x"), (error: unknown) => {
    assert.ok(error instanceof ApiError);
    assert.deepEqual([error.message, error.code, error.param, error.retryAfter], ["too long", body.error.code, "messages", null]);
    return true;
  });
});

test("the seconds of Retry-After are kept", async () => {
  answer(json({ error: { code: "queue_full" } }, 503, { "retry-after": "7" }));
  await assert.rejects(getJson("x"), (error: unknown) => error instanceof ApiError && error.retryAfter === 7);
});

for (const body of ["", "<html>", "[]", "null", '{"error": 3}']) {
  test(`an error whose body is ${JSON.stringify(body)} has its status`, async () => {
    answer(new Response(body, { status: 502 }));
    await assert.rejects(getJson("x"), hasCode(null, 502));
  });
}

test("a server that does not answer is an error of its own", async () => {
  answer(new TypeError("fetch failed"));
  await assert.rejects(getJson("x"), ConnectionError);
});

test("a stopped request stays what it is", async () => {
  answer(new DOMException("stopped", "AbortError"));
  await assert.rejects(getJson("x"), isAbort);
});

test("a stream yields events and comments until its end", async () => {
  answer(new Response(': waiting\n\ndata: {"a":1}\n\ndata: [DONE]\n\ndata: {"b":2}\n\n'));
  assert.deepEqual(await collect(postStream("x", {})), [
    { kind: "comment", text: "waiting" },
    { kind: "data", data: { a: 1 } },
  ]);
});

test("a stream without its end was cut off", async () => {
  answer(new Response('data: {"a":1}\n\n'));
  await assert.rejects(collect(postStream("x", {})), ConnectionError);
});

test("a stream of the status ends when the server ends it", async () => {
  answer(new Response('data: {"a":1}\n\n'));
  assert.deepEqual(await collect(getStream("x")), [{ kind: "data", data: { a: 1 } }]);
});

test("an error in a stream is thrown", async () => {
  answer(new Response('data: {"error": {"message": "m", "code": "engine_died"}}\n\n'));
  await assert.rejects(collect(postStream("x", {})), hasCode("engine_died", 0));
});

test("an event that is no JSON is an error", async () => {
  answer(new Response("data: {\n\n"));
  await assert.rejects(collect(postStream("x", {})), hasCode("invalid_event", 0));
});

test("a missing key is asked for once, and requests are sent again with it", async () => {
  const refused = (): Response => json({ error: { code: "invalid_api_key" } }, 401);
  const sent = answer(refused(), refused(), json(1), json(2));
  const both = Promise.all([getJson("a"), getJson("b")]);
  await new Promise((resolve) => setTimeout(resolve, 10));
  assert.equal(keyQuestion.value, "missing");
  giveKey("right");
  assert.deepEqual((await both).sort(), [1, 2]);
  assert.equal(keyQuestion.value, null);
  const keys = sent.map(({ init }) => (init.headers as Record<string, string>)["Authorization"]);
  assert.deepEqual(keys, [undefined, undefined, "Bearer right", "Bearer right"]);
});

test("a key that is not given leaves the error", async () => {
  answer(json({ error: { code: "invalid_api_key" } }, 401));
  const asked = assert.rejects(getJson("a"), hasCode("invalid_api_key", 401));
  await new Promise((resolve) => setTimeout(resolve, 10));
  assert.equal(keyQuestion.value, "wrong");
  giveKey(null);
  await asked;
});

const HASHES: [hash: string, view: string, rest: string[]][] = [
  ["", "", []],
  ["#", "", []],
  ["#/", "", []],
  ["#/chat", "chat", []],
  ["#/chat/abc", "chat", ["abc"]],
  ["#/models/org%2Fname", "models", ["org/name"]],
  ["#/chat/%", "chat", ["%"]],
];

for (const [hash, view, rest] of HASHES) {
  test(`the address ${JSON.stringify(hash)}`, () => assert.deepEqual({ ...parseHash(hash), query: null }, { view, rest, query: null }));
}

test("an address names what it was made of", () => {
  const { view, rest, query } = parseHash(`${hashOf("models", "org/name", "a b#c?d=e")}?ram=8GiB&x=%2F`);
  assert.deepEqual([view, rest, [...query]], ["models", ["org/name", "a b#c?d=e"], [["ram", "8GiB"], ["x", "/"]]]);
  assert.deepEqual([route.value.view, route.value.rest, route.value.query.size], ["chat", ["abc"], 0]);
});
