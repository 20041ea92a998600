// What /cluster said over the last two minutes: rates out of totals, and what became of the nodes. Draws nothing.

export const samples = 120;

const difference = (now, before) => (before === undefined || now < before ? null : now - before);

/// Keeps series of each node and of the cluster, and a list of events, newest first.
export class ClusterModel {
    constructor() {
        this.state = "";
        this.nodes = new Map();  // by name
        this.events = [];
        this.tokensPerSecond = [];
        this.requests = { running: 0, waiting: 0 };
        this.before = null;
    }

    /// Takes an answer of /cluster that came at `ms`.
    take(answer, ms) {
        const seconds = this.before ? (ms - this.before.ms) / 1000 : 0;
        for (const node of answer.nodes) this.takeNode(node, seconds);
        const names = new Set(answer.nodes.map((node) => node.name));
        for (const known of this.nodes.values())
            if (!names.has(known.name)) this.push(known, { ...known, state: "lost" }, null);
        const generated = difference(answer.tokens_generated, this.before?.answer.tokens_generated);
        append(this.tokensPerSecond, seconds > 0 && generated !== null ? generated / seconds : null);
        this.state = answer.state;
        this.requests = answer.requests ?? this.requests;
        this.events = (answer.events ?? []).map((event) => ({ ...event, ms: event.time * 1000 })).reverse();
        this.before = { answer, ms };
    }

    takeNode(node, seconds) {
        const known = this.nodes.get(node.name) ?? { name: node.name, compute: [], bytes: [], p50: [], p99: [] };
        this.nodes.set(node.name, known);
        this.push(known, node, seconds);
    }

    push(known, node, seconds) {
        const up = node.state !== "lost";
        const rate = (field) => {
            const by = difference(node[field], known[field]);
            return up && seconds > 0 && by !== null && by !== undefined ? by / seconds : null;
        };
        const busy = rate("compute_seconds");
        const sent = rate("bytes_sent");
        const received = rate("bytes_received");
        append(known.compute, busy === null ? null : Math.min(1, busy));
        append(known.bytes, sent === null || received === null ? null : sent + received);
        const measured = up && node.all_reduce?.count > 0;
        append(known.p50, measured ? node.all_reduce.p50_us : null);
        append(known.p99, measured ? node.all_reduce.p99_us : null);
        Object.assign(known, node);
    }

    /// By rank; those that are lost last.
    ordered() {
        return [...this.nodes.values()].sort((a, b) => (a.state === "lost") - (b.state === "lost") || a.rank - b.rank);
    }
}

function append(series, value) {
    series.push(value);
    if (series.length > samples) series.shift();
}
