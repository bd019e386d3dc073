/** Gatepost's API for pages and for Node: see README.md. */
export { Gatepost } from "./client.js";
export type {
  Account,
  AccountChanges,
  Email,
  Factor,
  Factors,
  NewFactor,
  Options,
  OwnSession,
  Passkey,
  SecondFactor,
  Session,
  TokenStore,
  User,
  WhoAmI,
} from "./client.js";
export { GatepostError, NotKnown, SecondFactorRequired } from "./errors.js";
export type { FieldError } from "./errors.js";
export type { Code } from "./openapi.js";
