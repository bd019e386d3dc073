import type { Code, components } from "./openapi.js";

/** What is wrong with which field. */
export type FieldError = components["schemas"]["FieldError"];

/** Gatepost refuses (4xx). `code` is stable and for programs; a newer Gatepost may have codes that are not listed. */
export class GatepostError extends Error {
  override readonly name = "GatepostError";

  constructor(
    readonly status: number,
    readonly code: Code | (string & {}),
    /** What went wrong, for people. */
    readonly detail: string,
    /** What is wrong with which field, if the problem is one of fields. */
    readonly errors: readonly FieldError[],
    /** Seconds to wait before the next try, if Gatepost says so. */
    readonly retryAfter: number | null,
  ) {
    super(`${status} ${code}: ${detail}`);
  }

  /** Whether it is this problem, with the name completed and checked. */
  is(code: Code): boolean {
    return this.code === code;
  }
}

/** The password was right, and the account has a second factor: go on with `Gatepost.finishLogIn`. */
export class SecondFactorRequired extends GatepostError {
  constructor(
    detail: string,
    /** What `finishLogIn` takes, for ten minutes and five tries. */
    readonly ticket: string,
    /** The proofs that it takes. */
    readonly methods: readonly ("totp" | "passkey" | "recovery_code" | (string & {}))[],
  ) {
    super(401, "second_factor_required", detail, [], null);
  }
}

/** Gatepost could not be asked, or could not answer (5xx): nothing is known, so nobody has to sign in anew for it. */
export class NotKnown extends Error {
  override readonly name = "NotKnown";
}
