/** One event of a stream. */
export interface StreamEvent {
  readonly type: string;
  readonly data: string;
}

// Gatepost's events are a few hundred bytes; whatever sends this much without an event is not Gatepost.
const LONGEST = 64 * 1024;

/**
 * The events of a Server-Sent Events stream (WHATWG HTML §9.2), as far as Gatepost uses them: comments and `retry` are
 * passed over. `heard` is called for whatever arrives. Not EventSource, which cannot send a token.
 */
export async function* eventsOf(body: ReadableStream<Uint8Array>, heard: () => void): AsyncGenerator<StreamEvent> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  try {
    for (let text = ""; ; ) {
      const { value, done } = await reader.read();
      if (done) return;
      heard();
      const blocks = (text + decoder.decode(value, { stream: true })).split("\n\n");
      text = blocks.pop() ?? "";
      if (text.length > LONGEST) return;
      for (const block of blocks) {
        const fields = new Map(block.split("\n").map((line) => line.split(/: ?(.*)/s, 2) as [string, string]));
        const type = fields.get("event");
        if (type !== undefined) yield { type, data: fields.get("data") ?? "" };
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}
