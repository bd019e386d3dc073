// Against a real Gatepost, whose address is in GATEPOST_URL; registration is open there.
import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { once } from "node:events";
import { createServer, type RequestListener } from "node:http";
import type { AddressInfo } from "node:net";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { after, test } from "node:test";

import { Gatepost, GatepostError, NotKnown, SecondFactorRequired, type Options } from "../src/index.js";

const URL = process.env["GATEPOST_URL"];
assert(URL, "GATEPOST_URL says where Gatepost is");
const PASSWORD = "correct horse battery";
let people = 0;

async function somebody(options?: Options): Promise<{ name: string; gatepost: Gatepost }> {
  const name = `${process.pid}-${people++}`;
  const gatepost = new Gatepost(URL, options);
  await gatepost.register(name, PASSWORD);
  await gatepost.logIn(name, PASSWORD);
  return { name, gatepost };
}

async function signedIn(name: string, options?: Options): Promise<Gatepost> {
  const gatepost = new Gatepost(URL, options);
  await gatepost.logIn(name, PASSWORD);
  return gatepost;
}

async function refusal(promise: Promise<unknown>): Promise<GatepostError> {
  const error = await promise.then(
    () => assert.fail("it was not refused"),
    (reason: unknown) => reason,
  );
  assert(error instanceof GatepostError, String(error));
  return error;
}

function signedOut(gatepost: Gatepost): Promise<void> {
  return new Promise((resolve) => gatepost.onSignedOut(resolve));
}

/** A `fetch` that keeps cookies as a browser does, on Gatepost's own origin. */
function withCookies(): typeof fetch {
  const jar = new Map<string, string>();
  return async (input, init) => {
    const headers = new Headers(init?.headers);
    headers.set("Cookie", [...jar].map(([name, value]) => `${name}=${value}`).join("; "));
    headers.set("Origin", URL!);
    const answer = await fetch(input, { ...init, headers });
    for (const cookie of answer.headers.getSetCookie()) {
      const [, name, value] = cookie.match(/^([^=]+)=([^;]*)/)!;
      if (/max-age=0/i.test(cookie)) jar.delete(name!);
      else jar.set(name!, value!);
    }
    return answer;
  };
}

/** Something on the network that is no Gatepost in order. */
async function broken(listener: RequestListener): Promise<string> {
  const server = createServer(listener).listen(0, "127.0.0.1");
  await once(server, "listening");
  after(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

for (const how of ["a token", "a cookie"]) {
  const options = (): Options => (how === "a cookie" ? { cookie: true, fetch: withCookies() } : {});

  test(`signing in, and out, with ${how}`, async () => {
    const { name, gatepost } = await somebody(options());
    assert.equal(gatepost.token === null, how === "a cookie");
    const who = await gatepost.whoAmI();
    assert.equal(who?.user.username, name);
    assert.deepEqual(who.user.roles, []);
    assert.equal(await gatepost.logOut(), true);
    assert.equal(await gatepost.whoAmI(), null);
    assert.equal(await gatepost.logOut(), false);
    assert.equal(gatepost.token, null);
  });

  test(`a new password renews this session and ends the others, with ${how}`, async () => {
    const { name, gatepost } = await somebody(options());
    const elsewhere = await signedIn(name, options());
    const before = gatepost.token;
    let told = false;
    const stop = gatepost.onSignedOut(() => (told = true));
    const gone = signedOut(elsewhere);
    await gatepost.changePassword(PASSWORD, "a better horse and battery");
    await gone;
    assert.equal(await elsewhere.whoAmI(), null);
    assert.equal((await gatepost.whoAmI())?.user.username, name);
    if (how === "a token") assert.notEqual(gatepost.token, before);
    // It goes on listening, under the new token.
    assert.equal(told, false);
    const ended = signedOut(gatepost);
    await gatepost.endSessions("all");
    await ended;
    stop();
  });

  test(`every tab hears that it was signed out elsewhere, with ${how}`, async () => {
    const { name, gatepost } = await somebody(options());
    const tabs = await Promise.all([signedIn(name, options()), signedIn(name, options())]);
    const all = Promise.all(tabs.map(signedOut));
    await new Promise((resolve) => setTimeout(resolve, 300)); // most have their stream by now, and some not yet
    await gatepost.endSessions("others");
    await all;
    assert.deepEqual(await Promise.all(tabs.map((tab) => tab.whoAmI())), [null, null]);
    assert.equal((await gatepost.whoAmI())?.user.username, name);
  });
}

/** The next mail to this address with these words in its subject, and the code in it. */
async function mailed(address: string, words: string): Promise<string> {
  const folder = process.env["GATEPOST_MAIL"];
  assert(folder, "GATEPOST_MAIL says where mail is written");
  for (let tries = 0; tries < 600; tries++) {
    for (const file of (await readdir(folder)).filter((name) => name.endsWith(`-${address}.eml`)).reverse()) {
      const mail = await readFile(join(folder, file), "utf8");
      const code = mail.match(/^([0-9A-Z]{4}-[0-9A-Z]{4}|[0-9a-f]{32})\r?$/m);
      if (mail.includes(words) && code) return code[1]!;
    }
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  return assert.fail(`no mail to ${address}`);
}

test("an address is verified, signs in, brings a new password, and its change is undone", async () => {
  const name = `${process.pid}-${people++}`;
  const [old, young] = [`${name}-old@example.org`, `${name}-young@example.org`];
  const gatepost = new Gatepost(URL);
  await gatepost.register(name, PASSWORD, old);
  await gatepost.logIn(name, PASSWORD);
  const [first] = await gatepost.emails();
  assert.equal(first?.verified_at, null);
  assert.equal((await gatepost.verifyEmail(first!.id, await mailed(old, "Confirm"))).primary, true);
  await gatepost.logIn(old, PASSWORD);
  await gatepost.recover(old);
  const code = await mailed(old, "Choose");
  assert((await refusal(gatepost.redeemCode(code, "a new battery and horse"))).is("invalid_body"));
  await gatepost.redeemCode(code, "a new battery and horse", old);
  await gatepost.logIn(name, "a new battery and horse");
  const added = await gatepost.addEmail(young, "a new battery and horse");
  await gatepost.verifyEmail(added.id, await mailed(young, "Confirm"));
  assert.equal((await gatepost.makeEmailPrimary(added.id)).primary, true);
  await gatepost.removeEmail(first!.id);
  assert.deepEqual((await gatepost.emails()).map((email) => email.address), [young]);
  await gatepost.undoEmailChanges(await mailed(old, "have changed"));
  assert((await refusal(gatepost.logIn(young, "a new battery and horse"))).is("invalid_credentials"));
});

test("tabs share a store", async () => {
  const store = { token: null };
  const { name } = await somebody({ store });
  const other = new Gatepost(URL, { store });
  assert.equal((await other.whoAmI())?.user.username, name);
  const both = signedOut(other);
  await other.logOut();
  await both;
  assert.equal(store.token, null);
});

test("nobody who is signed in hears so at once", async () => {
  await signedOut(new Gatepost(URL));
  await signedOut(new Gatepost(URL, { store: { token: "00000000-0000-4000-8000-000000000000" } }));
});

test("after it was stopped it calls nobody back", async () => {
  const { gatepost } = await somebody();
  let told = false;
  gatepost.onSignedOut(() => (told = true))();
  const stop = gatepost.onSignedOut(() => (told = true));
  await new Promise((resolve) => setTimeout(resolve, 200));
  stop();
  const other = signedOut(gatepost);
  await gatepost.logOut();
  await other;
  await new Promise((resolve) => setTimeout(resolve, 200));
  assert.equal(told, false);
});

test("account, profile, sessions, export and deletion", async () => {
  const { name, gatepost } = await somebody();
  assert.equal((await gatepost.changeAccount({ profile: { colour: "blue" } })).user.username, name);
  const account = await gatepost.account();
  assert.deepEqual(account.user.profile, { colour: "blue" });
  const other = await signedIn(name);
  const sessions = await gatepost.sessions();
  assert.equal(sessions.length, 2);
  await gatepost.endSession(sessions.find((session) => !session.current)!.handle);
  assert.equal(await other.whoAmI(), null);
  assert.equal((await refusal(gatepost.endSession("no/../handle"))).status, 404);
  assert.ok(Object.keys(await gatepost.exportAccount()).length > 0);
  assert((await refusal(gatepost.deleteAccount("wrong"))).is("wrong_password"));
  await gatepost.deleteAccount(PASSWORD);
  assert.equal(await gatepost.whoAmI(), null);
});

/** What an authenticator app shows (RFC 6238), `steps` times 30 seconds from now. */
function totp(secret: string, steps = 0): string {
  const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
  const bits = [...secret].map((letter) => alphabet.indexOf(letter).toString(2).padStart(5, "0")).join("");
  const key = Buffer.from(bits.match(/.{8}/g)!.map((octet) => Number.parseInt(octet, 2)));
  const counter = Buffer.alloc(8);
  counter.writeBigUInt64BE(BigInt(Math.floor(Date.now() / 30_000) + steps));
  const mac = createHmac("sha1", key).update(counter).digest();
  const number = mac.readUInt32BE(mac.at(-1)! & 0xf) & 0x7fffffff;
  return String(number % 1_000_000).padStart(6, "0");
}

test("two factors", async () => {
  const { name, gatepost } = await somebody();
  const { factor, secret, qr } = await gatepost.addFactor("Phone");
  assert.match(qr, /^<svg /);
  const codes = await gatepost.confirmFactor(factor.id, totp(secret));
  assert.equal(codes.length, 10);
  const other = new Gatepost(URL);
  const required = await refusal(other.logIn(name, PASSWORD));
  assert(required instanceof SecondFactorRequired);
  assert.deepEqual(required.methods, ["totp", "recovery_code"]);
  assert.equal(await other.whoAmI(), null);
  assert.equal((await refusal(other.finishLogIn(required.ticket, { totp: "000000" }))).code, "invalid_code");
  assert.equal((await other.finishLogIn(required.ticket, { totp: totp(secret, 1) })).username, name);
  assert.deepEqual((await other.whoAmI())?.session.amr, ["mfa", "otp", "pwd"]);
  assert((await refusal(other.confirm({ password: PASSWORD }))).is("confirmation_required"));
  await other.confirm({ recovery_code: codes[0]! });
  assert.equal((await other.factors()).recovery_codes, 9);
  assert.equal((await other.newRecoveryCodes()).length, 10);
  assert.deepEqual(await other.passkeys(), []);
  await other.removeFactor(factor.id);
  await signedIn(name);
});

test("refusals have a code, and name the fields", async () => {
  const { name, gatepost } = await somebody();
  assert((await refusal(gatepost.register(name, PASSWORD))).is("username_taken"));
  const wrong = [await refusal(gatepost.logIn(name, "wrong")), await refusal(gatepost.logIn("nobody", "wrong"))];
  assert.deepEqual(new Set(wrong.map((error) => error.message)).size, 1);
  assert(wrong[0]!.is("invalid_credentials"));
  assert.equal(gatepost.token === null, false, "a failed login leaves the session that there was");
  const short = await refusal(gatepost.register(`${name}x`, "a"));
  assert.equal(short.status, 422);
  assert.match(JSON.stringify(short.errors), /password/);
  assert((await refusal(gatepost.redeemCode("NOT-A-CODE", "a better horse and battery"))).status < 500);
  assert((await refusal(new Gatepost(URL).account())).is("unauthorized"));
  assert.doesNotMatch(String(short) + JSON.stringify(short), /correct horse/);
});

test("a Gatepost that is away, slow or not itself is not known, and signs nobody out", async () => {
  const store = { token: "00000000-0000-4000-8000-000000000000" };
  const places = {
    away: "http://127.0.0.1:1",
    failing: await broken((_, answer) => answer.writeHead(503, { "Content-Type": "application/json" }).end("{}")),
    "a page": await broken((_, answer) => answer.end("<html>Welcome to nginx</html>")),
    "a failing page": await broken((_, answer) => answer.writeHead(502).end("<html>Bad gateway</html>")),
    silent: await broken(() => undefined),
    cut: await broken((_, answer) => answer.writeHead(200).write("{", () => answer.destroy())),
  };
  for (const [what, url] of Object.entries(places)) {
    const gatepost = new Gatepost(url, { store, timeout: 300 });
    await assert.rejects(gatepost.whoAmI(), NotKnown, what);
    await assert.rejects(gatepost.logIn("ada", PASSWORD), NotKnown, what);
    await assert.rejects(gatepost.logOut(), NotKnown, what);
    const stop = gatepost.onSignedOut(() => assert.fail(`${what}: nobody was signed out`));
    await new Promise((resolve) => setTimeout(resolve, 400));
    stop();
    assert.notEqual(store.token, null, what);
  }
});

test("a stream that was cut is opened again", async () => {
  let streams = 0;
  const url = await broken((request, answer) => {
    if (request.url === "/user/events" && ++streams === 2) return answer.writeHead(401).end("{}");
    answer.writeHead(200, { "Content-Type": "text/event-stream" });
    answer.write("event: hel");
    setTimeout(() => answer.write("lo\r\ndata: {}\n\n:\n\n", () => answer.destroy()), 20);
  });
  await signedOut(new Gatepost(url, { store: { token: "t" } }));
  assert.equal(streams, 2);
});
