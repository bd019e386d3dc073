// What pages can do with a script that they cannot do without: passkeys, and taking a code out of a mail's link.
"use strict";

const decode = (text) =>
  Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (character) => character.charCodeAt(0));
const encode = (buffer) =>
  btoa(String.fromCharCode(...new Uint8Array(buffer))).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");

// The options and the credential as JSON (WebAuthn §5.1), for browsers that cannot do it themselves yet.
function options(json) {
  const parse = json.user
    ? PublicKeyCredential.parseCreationOptionsFromJSON
    : PublicKeyCredential.parseRequestOptionsFromJSON;
  if (parse) return parse.call(PublicKeyCredential, json);
  const described = (list) => (list || []).map((one) => ({ ...one, id: decode(one.id) }));
  const read = { ...json, challenge: decode(json.challenge) };
  if (json.user) read.user = { ...json.user, id: decode(json.user.id) };
  if (json.excludeCredentials) read.excludeCredentials = described(json.excludeCredentials);
  if (json.allowCredentials) read.allowCredentials = described(json.allowCredentials);
  return read;
}

function written(credential) {
  if (credential.toJSON) return credential.toJSON();
  const response = {};
  for (const name of ["clientDataJSON", "attestationObject", "authenticatorData", "signature", "userHandle"]) {
    if (credential.response[name]) response[name] = encode(credential.response[name]);
  }
  if (credential.response.getTransports) response.transports = credential.response.getTransports();
  return {
    id: credential.id,
    rawId: encode(credential.rawId),
    type: credential.type,
    response,
    clientExtensionResults: credential.getClientExtensionResults(),
  };
}

let waiting; // the request that waits for somebody to choose a passkey in the autofill of a field

async function usePasskey(form, autofill) {
  const making = form.dataset.passkey === "create";
  const answer = await fetch(making ? "/me/factors/passkeys/options" : "/sign-in/passkey/options", { method: "POST" });
  if (!answer.ok) throw new Error(answer.statusText);
  const publicKey = options((await answer.json()).publicKey);
  waiting?.abort();
  const controller = new AbortController();
  if (autofill) waiting = controller;
  const asked = { publicKey, signal: controller.signal, ...(autofill && { mediation: "conditional" }) };
  const credential = await (making ? navigator.credentials.create(asked) : navigator.credentials.get(asked));
  form.elements[form.dataset.field].value = JSON.stringify(written(credential));
  form.submit();
}

for (const form of document.querySelectorAll("form[data-passkey]")) {
  if (!window.PublicKeyCredential) break;
  form.hidden = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector("button");
    const error = form.querySelector(".error");
    error.hidden = true;
    button.setAttribute("aria-busy", "true");
    try {
      await usePasskey(form, false);
    } catch {
      button.removeAttribute("aria-busy");
      error.hidden = false;
    }
  });
  if ("autofill" in form.dataset) {
    PublicKeyCredential.isConditionalMediationAvailable?.().then((available) => {
      if (available) usePasskey(form, true).catch(() => {}); // nobody has chosen one there
    });
  }
}

// A mail's link has its code behind the #, where neither a server nor a log sees it.
const linked = new URLSearchParams(location.hash.slice(1));
for (const form of document.querySelectorAll("form[data-code]")) {
  const code = linked.get(form.dataset.code);
  if (!code) continue;
  form.elements.code.value = code;
  form.elements.code.closest(".field").hidden = true;
  const identifier = form.elements.identifier;
  if (identifier) identifier.closest(".field").hidden = true;
  history.replaceState(null, "", location.pathname);
  (form.querySelector("input:not([type=hidden], #code, #identifier)") || form.querySelector("button")).focus();
}
// Whoever has to sign in first keeps it.
const back = document.querySelector('form[action="/sign-in"] [name="return_to"]');
if (back && linked.size) {
  for (const input of document.querySelectorAll('[name="return_to"]')) input.value += location.hash;
}

for (const button of document.querySelectorAll("[data-print]")) {
  button.hidden = false;
  button.addEventListener("click", () => print());
}

// Help with choosing a password, after the rules of zxcvbn: what is guessed first is repeats, rows of the alphabet or the
// keyboard, and dates. It stays in the browser. Its dictionaries would be twenty times as large as all of this.
const ROWS = ["abcdefghijklmnopqrstuvwxyz", "01234567890", "qwertyuiop", "qwertzuiop", "azertyuiop", "asdfghjkl", "zxcvbnm"];
const RUNS = ROWS.flatMap((row) => [row, [...row].reverse().join("")]);

function judge(password) {
  const text = password.toLowerCase();
  let rest = text.replace(/(.+?)\1{2,}|(.{4,})\2/gu, "$1$2");
  if (rest.length < text.length * 0.7) return "repeats";
  for (let length = 8; length >= 4; length--) {
    for (const run of RUNS) {
      for (let at = 0; at + length <= run.length; at++) rest = rest.replaceAll(run.slice(at, at + length), run[at]);
    }
  }
  if (rest.length < text.length * 0.7) return "sequences";
  const dated = rest.replace(/(19|20)\d\d|\d{1,2}[./-]\d{1,2}[./-]\d{2,4}/g, "");
  if (dated.length < text.length * 0.7) return "dates";
  return new Set(dated).size < 8 || dated.length < 15 ? "few" : "good";
}

for (const hint of document.querySelectorAll("[data-strength]")) {
  const input = document.getElementById(hint.dataset.strength);
  hint.hidden = false; // its place is kept, or the button would move away from under a click
  input.addEventListener("input", () => {
    hint.textContent = input.value.length < 8 ? "" : hint.dataset[judge(input.value.slice(0, 128))];
  });
}

// The list of events is read anew, as the page has it, for as long as somebody follows it.
const follow = document.querySelector("[data-follow]");
if (follow) {
  let timer;
  follow.hidden = false;
  const read = async () => {
    const answer = await fetch(location.href).catch(() => undefined);
    if (answer?.ok) {
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      document.getElementById("events").replaceWith(page.getElementById("events"));
    }
    timer = setTimeout(read, 3000);
  };
  follow.addEventListener("click", () => {
    const on = follow.getAttribute("aria-pressed") !== "true";
    follow.setAttribute("aria-pressed", on);
    clearTimeout(timer);
    if (on) read();
  });
}

for (const time of document.querySelectorAll("time[datetime]")) {
  const local = new Date(time.dateTime);
  time.title ||= local.toLocaleString(document.documentElement.lang);
}
