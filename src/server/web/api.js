// The server's API: requests, streams of events, and its errors in words.

/// An error as the user reads it. `kind`: offline, key, busy, loading, lost, request, broken.
export class ApiError extends Error {
    constructor(kind, title, detail = "") {
        super(title);
        this.kind = kind;
        this.detail = detail;
    }
}

/// The error that a status and the body of an answer stand for.
export function errorOf(status, body, retryAfter) {
    let detail = "";
    try {
        const { error } = JSON.parse(body);
        detail = typeof error === "string" ? error : error?.message ?? "";
    } catch {
        detail = body.slice(0, 300);
    }
    if (status === 401 || status === 403) return new ApiError("key", "The server asks for an API key", detail);
    if (status === 429) {
        const when = /^\d+$/.test(retryAfter ?? "") ? ` Try again in ${retryAfter} s.` : " Try again in a moment.";
        return new ApiError("busy", "The server is busy", (detail || "Its queue is full.") + when);
    }
    if (status === 503 && /load/i.test(detail)) return new ApiError("loading", "The model is still being loaded", detail);
    if (status === 503) return new ApiError("lost", "The server cannot answer now", detail);
    if (status === 413) return new ApiError("request", "The conversation is too large for the server", detail);
    if (status >= 500) return new ApiError("broken", "The server failed", detail || `Status ${status}`);
    return new ApiError("request", "The server refuses this request", detail || `Status ${status}`);
}

/// Splits a stream of server-sent events: feed(text) returns the data of the events that have ended.
export function eventReader() {
    let rest = "";
    let data = [];
    return function feed(text) {
        const lines = (rest + text).split(/\r\n|\n|\r(?!$)/);
        rest = lines.pop();
        const events = [];
        for (const line of lines) {
            if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
            else if (line === "" && data.length) {
                events.push(data.join("\n"));
                data = [];
            }
        }
        return events;
    };
}

export class Api {
    /// `key()` gives the API key or an empty text.
    constructor(key) {
        this.key = key;
    }

    async fetch(path, options = {}) {
        const headers = { ...options.headers };
        if (this.key()) headers.Authorization = `Bearer ${this.key()}`;
        let response;
        try {
            response = await fetch(path, { ...options, headers, cache: "no-store" });
        } catch (error) {
            if (error.name === "AbortError") throw error;
            throw new ApiError("offline", "The server cannot be reached", "Is dllama-api still running?");
        }
        if (!response.ok) throw errorOf(response.status, await response.text(), response.headers.get("Retry-After"));
        return response;
    }

    /// The answer to a GET as an object.
    async get(path, signal) {
        return (await this.fetch(path, { signal })).json();
    }

    /// Streams an answer: onDelta({reasoning, content}) for each piece; returns {finish, usage, timings}. Throws ApiError,
    /// also where the stream ends before the answer does, and AbortError if `signal` says so.
    async chat(request, signal, onDelta) {
        const response = await this.fetch("/v1/chat/completions", {
            method: "POST",
            headers: { "Content-Type": "application/json" },
            body: JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } }),
            signal,
        });
        const result = {};
        const feed = eventReader();
        const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
        for (;;) {
            let piece;
            try {
                piece = await reader.read();
            } catch (error) {
                if (error.name === "AbortError") throw error;
                throw new ApiError("offline", "The connection broke off", "What had arrived is kept.");
            }
            for (const data of piece.done ? [] : feed(piece.value)) {
                if (data === "[DONE]") return result;
                takeChunk(JSON.parse(data), result, onDelta);
            }
            if (piece.done) break;
        }
        if (result.finish) return result;
        throw new ApiError("offline", "The connection ended before the answer did", "What had arrived is kept.");
    }
}

function takeChunk(chunk, result, onDelta) {
    if (chunk.error) throw errorOf(Number(chunk.error.code) || 500, JSON.stringify(chunk));
    if (chunk.usage) result.usage = chunk.usage;
    if (chunk.timings) result.timings = chunk.timings;
    for (const choice of chunk.choices ?? []) {
        const { content, reasoning_content: reasoning } = choice.delta ?? {};
        if (content || reasoning) onDelta({ content: content ?? "", reasoning: reasoning ?? "" });
        if (choice.finish_reason) result.finish = choice.finish_reason;
    }
}
