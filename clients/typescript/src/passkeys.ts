// What browsers speak of passkeys in bytes, and Gatepost in JSON (WebAuthn Level 3, §5.1.8 to §5.1.10). Browsers of today
// convert it themselves; these functions are for all others.

type Json = Record<string, unknown>;

/** Ask the browser to make a passkey. `options`: the `publicKey` of Gatepost's answer. */
export async function makePasskey(options: Json): Promise<Json> {
  const user = options["user"] as Json;
  const excluded = (options["excludeCredentials"] ?? []) as Json[];
  const made = await navigator.credentials.create({
    publicKey: {
      ...(options as unknown as PublicKeyCredentialCreationOptions),
      challenge: decoded(options["challenge"]),
      user: { ...(user as unknown as PublicKeyCredentialUserEntity), id: decoded(user["id"]) },
      excludeCredentials: excluded.map((each) => ({ type: "public-key", id: decoded(each["id"]) })),
    },
  });
  const { response, ...credential } = described(made);
  const attestation = response as AuthenticatorAttestationResponse;
  return {
    ...credential,
    response: {
      clientDataJSON: encoded(attestation.clientDataJSON),
      attestationObject: encoded(attestation.attestationObject),
      transports: attestation.getTransports?.() ?? [],
    },
  };
}

/** Ask the browser to use a passkey that exists. `options`: the `publicKey` of Gatepost's answer. */
export async function usePasskey(options: Json): Promise<Json> {
  const used = await navigator.credentials.get({
    publicKey: {
      ...(options as unknown as PublicKeyCredentialRequestOptions),
      challenge: decoded(options["challenge"]),
      allowCredentials: [],
    },
  });
  const { response, ...credential } = described(used);
  const assertion = response as AuthenticatorAssertionResponse;
  return {
    ...credential,
    response: {
      clientDataJSON: encoded(assertion.clientDataJSON),
      authenticatorData: encoded(assertion.authenticatorData),
      signature: encoded(assertion.signature),
      ...(assertion.userHandle !== null && { userHandle: encoded(assertion.userHandle) }),
    },
  };
}

function described(credential: Credential | null): Json & { response: AuthenticatorResponse } {
  const found = credential as PublicKeyCredential | null;
  if (found === null) throw new DOMException("no passkey was chosen", "NotAllowedError");
  return {
    id: found.id,
    rawId: encoded(found.rawId),
    type: found.type,
    clientExtensionResults: {},
    ...(found.authenticatorAttachment != null && { authenticatorAttachment: found.authenticatorAttachment }),
    response: found.response,
  };
}

function encoded(bytes: ArrayBuffer): string {
  const text = btoa(String.fromCharCode(...new Uint8Array(bytes)));
  return text.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function decoded(text: unknown): Uint8Array<ArrayBuffer> {
  const bytes = atob(String(text).replaceAll("-", "+").replaceAll("_", "/"));
  return Uint8Array.from(bytes, (character) => character.charCodeAt(0));
}
