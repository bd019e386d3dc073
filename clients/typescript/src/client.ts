import { GatepostError, NotKnown, SecondFactorRequired } from "./errors.js";
import { eventsOf } from "./events.js";
import type { components } from "./openapi.js";
import { makePasskey, usePasskey } from "./passkeys.js";

type Schemas = components["schemas"];
export type User = Schemas["UserDocument"];
export type Session = Schemas["SessionDocument"];
export type OwnSession = Schemas["OwnSession"];
export type Account = Schemas["AccountAnswer"];
export type AccountChanges = Schemas["AccountsChange"];
export type Email = Schemas["EmailDocument"];
export type Factor = Schemas["FactorDocument"];
export type Factors = Schemas["FactorsAnswer"];
export type NewFactor = Schemas["NewFactorAnswer"];
export type Passkey = Schemas["PasskeyDocument"];
export type WhoAmI = Schemas["WhoAmIAnswer"];

/** One proof of who somebody is. `passkey`: "ask" lets the browser ask for one; else what it has signed, as JSON. */
export type SecondFactor =
  | { totp: string }
  | { recovery_code: string }
  | { passkey: "ask" | Record<string, unknown> };

/** Where the token is kept. */
export interface TokenStore {
  token: string | null;
}

export interface Options {
  /**
   * Keep the session in a cookie that scripts cannot read, for pages of Gatepost's own origin (a proxy puts both on
   * one). Without it, the token is kept in `store` and sent in `Authorization`.
   */
  cookie?: boolean;
  /** Where the token is kept; by default in memory. All tabs share one that reads and writes `localStorage`. */
  store?: TokenStore;
  /** Milliseconds after which an answer is no longer waited for (10,000). */
  timeout?: number;
  /** Used in place of the global `fetch`. */
  fetch?: typeof fetch;
}

// Gatepost sends something at least every 15 seconds.
const SILENCE = 40_000;
const LONGEST_PAUSE = 30_000;

interface Call {
  body?: unknown;
  signal?: AbortSignal;
}

/**
 * Calls Gatepost for the person who uses this page, or for one session in a Node program.
 *
 * Methods throw `GatepostError` for what Gatepost refuses, and `NotKnown` when it cannot be asked or cannot answer.
 */
export class Gatepost {
  readonly #url: string;
  readonly #cookie: boolean;
  readonly #store: TokenStore;
  readonly #timeout: number;
  readonly #fetch: typeof fetch;

  /** `url`: where Gatepost is; by default on the page's own origin. */
  constructor(url: string | URL = "", options: Options = {}) {
    this.#url = String(url).replace(/\/+$/, "");
    this.#cookie = options.cookie ?? false;
    this.#store = options.store ?? { token: null };
    this.#timeout = options.timeout ?? 10_000;
    this.#fetch = options.fetch ?? ((...given) => fetch(...given));
  }

  /** The token, to send to backends as `Authorization: Bearer …`. Null with a cookie, and while nobody is signed in. */
  get token(): string | null {
    return this.#cookie ? null : this.#store.token;
  }

  /** Make an account, where registration is open. It does not sign in. */
  async register(username: string, password: string, email?: string): Promise<User> {
    const body: Schemas["Registration"] = { username, password, ...(email !== undefined && { email }) };
    return (await this.#call<Schemas["Registered"]>("POST", "/account", { body })).user;
  }

  /**
   * Sign in. A wrong name and a wrong password look alike (`invalid_credentials`). Throws `SecondFactorRequired` for a
   * user who has one: go on with `finishLogIn`.
   */
  async logIn(username: string, password: string): Promise<User> {
    const body: Schemas["Login"] = { username, password, cookie: this.#cookie };
    const answer = await this.#call<Schemas["LoginAnswer"]>("POST", "/user", { body });
    this.#keep(answer.session_id);
    return answer.user;
  }

  /** Go on with a login that threw `SecondFactorRequired`. A wrong code is `invalid_code`: try again. */
  async finishLogIn(ticket: string, proof: SecondFactor): Promise<User> {
    const body = { login: ticket, cookie: this.#cookie, ...(await this.#proof(proof)) };
    const answer = await this.#call<Schemas["LoginAnswer"]>("POST", "/user/factor", { body });
    this.#keep(answer.session_id);
    return answer.user;
  }

  /** Sign in with a passkey, without a name: the browser asks which one. */
  async logInWithPasskey(): Promise<User> {
    const body = { credential: await this.#usePasskey(), cookie: this.#cookie };
    const answer = await this.#call<Schemas["LoginAnswer"]>("POST", "/user/passkey", { body });
    this.#keep(answer.session_id);
    return answer.user;
  }

  /** Prove again who it is, for what is refused with `confirmation_required`. */
  async confirm(proof: { password: string } | SecondFactor): Promise<void> {
    const body = "password" in proof ? proof : await this.#proof(proof);
    await this.#call("POST", "/user/confirm", { body });
  }

  /** The authenticator apps of whoever is signed in, and how many recovery codes are left. */
  factors(): Promise<Factors> {
    return this.#call("GET", "/account/factors");
  }

  /** Add an authenticator app: its secret, URI and QR code (SVG). It counts once `confirmFactor` is given a code. */
  addFactor(name: string): Promise<NewFactor> {
    return this.#call("POST", "/account/factors", { body: { name } });
  }

  /** Let an app count. The first second factor brings recovery codes, which are told only here. */
  async confirmFactor(id: string, code: string): Promise<string[]> {
    const path = `/account/factors/${encodeURIComponent(id)}/confirm`;
    return (await this.#call<Schemas["ConfirmedAnswer"]>("POST", path, { body: { code } })).recovery_codes;
  }

  /** Remove an app. */
  async removeFactor(id: string): Promise<void> {
    await this.#call("DELETE", `/account/factors/${encodeURIComponent(id)}`);
  }

  /** Ten recovery codes, in place of earlier ones. */
  async newRecoveryCodes(): Promise<string[]> {
    return (await this.#call<Schemas["CodesAnswer"]>("POST", "/account/factors/recovery-codes")).recovery_codes;
  }

  /** The passkeys of whoever is signed in, the oldest first. */
  async passkeys(): Promise<Passkey[]> {
    return (await this.#call<Schemas["PasskeysAnswer"]>("GET", "/account/passkeys")).passkeys;
  }

  /** Let the browser make a passkey. The first second factor brings recovery codes, which are told only here. */
  async addPasskey(name: string): Promise<{ passkey: Passkey; recoveryCodes: string[] }> {
    const { publicKey } = await this.#call<Schemas["CreationOptions"]>("POST", "/account/passkeys/options");
    const body = { credential: await makePasskey(publicKey), name };
    const added = await this.#call<Schemas["PasskeyAdded"]>("POST", "/account/passkeys", { body });
    return { passkey: added.passkey, recoveryCodes: added.recovery_codes };
  }

  /** Call a passkey otherwise. */
  async renamePasskey(id: string, name: string): Promise<Passkey> {
    const path = `/account/passkeys/${encodeURIComponent(id)}`;
    return (await this.#call<Schemas["PasskeyAnswer"]>("PATCH", path, { body: { name } })).passkey;
  }

  /** Remove a passkey. */
  async removePasskey(id: string): Promise<void> {
    await this.#call("DELETE", `/account/passkeys/${encodeURIComponent(id)}`);
  }

  async #usePasskey(): Promise<Record<string, unknown>> {
    const { publicKey } = await this.#call<Schemas["RequestOptions"]>("POST", "/user/passkey/options");
    return usePasskey(publicKey);
  }

  async #proof(proof: SecondFactor): Promise<Record<string, unknown>> {
    return "passkey" in proof && proof.passkey === "ask" ? { passkey: await this.#usePasskey() } : proof;
  }

  /** Sign out, everywhere and at once. False if the session had ended before. */
  async logOut(): Promise<boolean> {
    const gone = await this.#unlessSignedOut(() => this.#call("DELETE", "/user"));
    this.#keep(null);
    return gone !== null;
  }

  /** Who is signed in; null if nobody is. */
  async whoAmI(): Promise<WhoAmI | null> {
    if (!this.#mayBeSignedIn) return null;
    return this.#unlessSignedOut(() => this.#call<WhoAmI>("GET", "/user"));
  }

  /** The account of whoever is signed in. */
  account(): Promise<Account> {
    return this.#call("GET", "/account");
  }

  /** Change the name or the profile (a JSON merge patch, RFC 7396). */
  changeAccount(changes: AccountChanges): Promise<Account> {
    return this.#call("PATCH", "/account", { body: changes });
  }

  /** Change the password. This session goes on, the user's other sessions end. */
  async changePassword(current: string, password: string): Promise<void> {
    const body: Schemas["PasswordChange"] = { current, new: password };
    this.#keep((await this.#call<Schemas["Renewed"]>("PUT", "/account/password", { body })).session_id);
  }

  /** Ask for a way back, with a username or an address. Whether there is such a user, nobody is told. */
  async recover(identifier: string): Promise<void> {
    await this.#call("POST", "/account/recovery", { body: { identifier } });
  }

  /** Choose a new password with a code. One that was typed takes the identifier that it was asked for with. */
  async redeemCode(code: string, password: string, identifier?: string): Promise<void> {
    const body: Schemas["Redemption"] = { code, new: password, ...(identifier !== undefined && { identifier }) };
    await this.#call("POST", "/account/password/redeem", { body });
  }

  /** The mail addresses of whoever is signed in, the primary one first. */
  async emails(): Promise<Email[]> {
    return (await this.#call<Schemas["EmailsAnswer"]>("GET", "/account/emails")).emails;
  }

  /** Add an address; a code is mailed to it. Added again, it gets another one. */
  async addEmail(email: string, password: string): Promise<Email> {
    const body: Schemas["NewEmail"] = { email, password };
    return (await this.#call<Schemas["EmailAnswer"]>("POST", "/account/emails", { body })).email;
  }

  /** Prove with the code from the mail, typed or from its link, that an address is one's own. */
  async verifyEmail(id: string, code: string): Promise<Email> {
    const path = `/account/emails/${encodeURIComponent(id)}/verify`;
    return (await this.#call<Schemas["EmailAnswer"]>("POST", path, { body: { code } })).email;
  }

  /** Let mail go to this verified address. */
  async makeEmailPrimary(id: string): Promise<Email> {
    const path = `/account/emails/${encodeURIComponent(id)}/primary`;
    return (await this.#call<Schemas["EmailAnswer"]>("PUT", path)).email;
  }

  /** Remove an address. */
  async removeEmail(id: string): Promise<void> {
    await this.#call("DELETE", `/account/emails/${encodeURIComponent(id)}`);
  }

  /** Undo changes of addresses with the code from the notice. Every session ends, and so does the password. */
  async undoEmailChanges(code: string): Promise<void> {
    await this.#call("POST", "/account/emails/undo", { body: { code } });
  }

  /** Delete the account with everything that belongs to it. */
  async deleteAccount(password: string): Promise<void> {
    await this.#call("DELETE", "/account", { body: { password } });
    this.#keep(null);
  }

  /** Everything that Gatepost holds about whoever is signed in. */
  exportAccount(): Promise<Record<string, unknown>> {
    return this.#call("GET", "/account/export");
  }

  /** The user's live sessions, the newest first. */
  async sessions(): Promise<OwnSession[]> {
    return (await this.#call<Schemas["OwnSessions"]>("GET", "/sessions")).sessions;
  }

  /** End one of the user's sessions. */
  async endSession(handle: string): Promise<void> {
    await this.#call("DELETE", `/sessions/${encodeURIComponent(handle)}`);
  }

  /** End the user's other sessions, or all. */
  async endSessions(scope: "others" | "all"): Promise<void> {
    await this.#call("DELETE", `/sessions?scope=${scope}`);
    if (scope === "all") this.#keep(null);
  }

  /**
   * Call back once, as soon as nobody is signed in any more, wherever the session was ended: in another tab, by an
   * administrator, by a new password elsewhere, or because it expired. While Gatepost is away nothing is known, and
   * it is asked again. Returns what stops it.
   */
  onSignedOut(callback: () => void): () => void {
    const stop = new AbortController();
    void this.#follow(callback, stop.signal);
    return () => stop.abort();
  }

  async #follow(callback: () => void, stop: AbortSignal): Promise<void> {
    for (let pause = 0; !stop.aborted; pause = Math.min(Math.max(2 * pause, 500), LONGEST_PAUSE)) {
      await sleep(pause * (0.5 + Math.random()), stop);
      if (!this.#mayBeSignedIn || (await this.#listen(stop, () => (pause = 0)))) {
        this.#keep(null);
        if (!stop.aborted) callback();
        return;
      }
    }
  }

  /**
   * Listen until the stream ends. True if nobody is signed in, false also while that is not known. After a change of the
   * password the session goes on under a new token and its stream ends too, so Gatepost is asked once more.
   */
  async #listen(stop: AbortSignal, answered: () => void): Promise<boolean> {
    const asked = this.token;
    const silent = new AbortController();
    let timer = setTimeout(() => silent.abort(), this.#timeout);
    const signal = AbortSignal.any([stop, silent.signal]);
    try {
      const answer = await this.#fetch(`${this.#url}/user/events`, this.#request("GET", { signal }));
      if (answer.status === 401) return !this.#renewedSince(asked);
      if (!answer.ok || answer.body === null) return false;
      const heard = () => {
        clearTimeout(timer);
        timer = setTimeout(() => silent.abort(), SILENCE);
      };
      for await (const event of eventsOf(answer.body, heard)) {
        answered();
        if (event.type === "session.revoked" && JSON.parse(event.data).current) return await this.#hasEnded();
      }
      return false;
    } catch {
      return false;
    } finally {
      clearTimeout(timer);
    }
  }

  async #hasEnded(): Promise<boolean> {
    const asked = this.token;
    return (await this.whoAmI()) === null && !this.#renewedSince(asked);
  }

  /** Whether there is another token by now: then what was answered concerned the one before. */
  #renewedSince(asked: string | null): boolean {
    return this.token !== null && this.token !== asked;
  }

  get #mayBeSignedIn(): boolean {
    return this.#cookie || this.#store.token !== null;
  }

  #keep(token: string | null): void {
    if (!this.#cookie) this.#store.token = token;
  }

  async #unlessSignedOut<T>(call: () => Promise<T>): Promise<T | null> {
    try {
      return await call();
    } catch (error) {
      if (error instanceof GatepostError && error.status === 401) return null;
      throw error;
    }
  }

  #request(method: string, { body, signal }: Call): RequestInit {
    const headers: Record<string, string> = {};
    if (this.token !== null) headers["Authorization"] = `Bearer ${this.token}`;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    return {
      method,
      headers,
      credentials: this.#cookie ? "same-origin" : "omit",
      cache: "no-store",
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      ...(signal === undefined ? {} : { signal }),
    };
  }

  async #call<T>(method: string, path: string, call: Call = {}): Promise<T> {
    let answer: Response;
    let document: unknown;
    try {
      const signal = AbortSignal.timeout(this.#timeout);
      answer = await this.#fetch(this.#url + path, this.#request(method, { ...call, signal }));
      document = await answer.json();
    } catch (error) {
      throw new NotKnown("Gatepost cannot be reached", { cause: error });
    }
    if (answer.ok) return document as T;
    const problem = document as Partial<Schemas["ProblemDocument"]>;
    if (answer.status >= 500) throw new NotKnown(`Gatepost answers ${answer.status} (${problem?.code})`);
    if (problem?.code === "second_factor_required") {
      throw new SecondFactorRequired(problem.detail ?? "", problem.login ?? "", problem.methods ?? []);
    }
    const after = answer.headers.get("Retry-After") ?? "";
    throw new GatepostError(
      answer.status,
      problem?.code ?? "unknown",
      problem?.detail ?? "",
      problem?.errors ?? [],
      /^\d+$/.test(after) ? Number(after) : null,
    );
  }
}

function sleep(milliseconds: number, stop: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      stop.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, milliseconds);
    stop.addEventListener("abort", end);
    if (stop.aborted) end();
  });
}
