// One answer from the first byte to its statistics.

import { ApiError } from "./api.js";
import { duration } from "./chat-view.js";

const one = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const frameMs = 60;
const saveMs = 2000;

/// Streams the answer to `request` into `node`: draw() a few times a second, save() every two. Ends with node.state
/// done, stopped (by `signal`) or failed (node.error says why); never throws for what the server does.
export async function writeAnswer(api, request, node, signal, draw, save) {
    const began = performance.now();
    let first = 0;
    let thoughtEnd = 0;
    let pieces = 0;
    let timer = 0;
    const drawSoon = () => { timer ||= setTimeout(() => { timer = 0; draw(); }, frameMs); };
    const saving = setInterval(save, saveMs);
    const waiting = setInterval(() => {
        const now = performance.now();
        node.live = first ? `${one.format(pieces / Math.max(0.001, (now - first) / 1000))} tokens/s` : duration((now - began) / 1000);
        drawSoon();
    }, 500);
    try {
        const result = await api.chat(request, signal, ({ content, reasoning }) => {
            first ||= performance.now();
            if (content && node.reasoning && !thoughtEnd) {
                thoughtEnd = performance.now();
                node.thoughtSeconds = (thoughtEnd - first) / 1000;
            }
            node.reasoning += reasoning;
            node.content += content;
            pieces++;
            drawSoon();
        });
        node.finish = result.finish;
        node.state = "done";
        node.stats = statsOf(result, pieces, began, first);
    } catch (error) {
        if (error.name === "AbortError") {
            node.state = "stopped";
        } else {
            node.state = "failed";
            const known = error instanceof ApiError ? error : new ApiError("broken", "The answer cannot be read", error.message);
            node.error = { kind: known.kind, title: known.message, detail: known.detail };
        }
        if (first) node.stats = statsOf({}, pieces, began, first);
    } finally {
        clearInterval(saving);
        clearInterval(waiting);
        clearTimeout(timer);
        delete node.live;
        draw();
    }
}

/// The server's own numbers where it tells them; those seen from here else.
function statsOf({ usage, timings }, pieces, began, first) {
    const seconds = (performance.now() - (first || began)) / 1000;
    return {
        tokens: usage?.completion_tokens ?? pieces,
        contextTokens: usage?.total_tokens,
        tokensPerSecond: timings?.predicted_per_second ?? (pieces > 1 ? (pieces - 1) / Math.max(0.001, seconds) : undefined),
        firstTokenSeconds: ((first || performance.now()) - began) / 1000,
    };
}
