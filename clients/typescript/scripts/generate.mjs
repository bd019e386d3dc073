// Writes src/openapi.ts from the OpenAPI document on stdin: its types by openapi-typescript, and the codes of problems,
// which that passes over because they stand beside a $ref.
import { writeFileSync } from "node:fs";
import { text } from "node:stream/consumers";
import openapiTS, { astToString } from "openapi-typescript";

const document = await text(process.stdin);

function* codesIn(value) {
  if (typeof value !== "object" || value === null) return;
  for (const [name, inner] of Object.entries(value)) {
    if (name === "code" && Array.isArray(inner?.enum)) yield* inner.enum;
    else yield* codesIn(inner);
  }
}

const codes = [...new Set(codesIn(JSON.parse(document)))].sort();
if (codes.length === 0) throw new Error("the document names no codes");
writeFileSync(
  new URL("../src/openapi.ts", import.meta.url),
  `// Made by scripts/generate.mjs from Gatepost's OpenAPI document.

/** What went wrong, for programs. */
export type Code =
${codes.map((code) => `  | ${JSON.stringify(code)}`).join("\n")};

${astToString(await openapiTS(document, { defaultNonNullable: false }))}`,
);
