// The panel beside the chat: every node with its memory, work, network and all-reduces, and what happened to it.

import { ApiError } from "./api.js";
import { ClusterModel, samples } from "./cluster-model.js";
import { h, iconButton, speak, toast } from "./dom.js";
import { sparkline } from "./sparkline.js";

const number = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });

function bytes(n) {
    const units = ["B", "kB", "MB", "GB", "TB"];
    const power = n >= 1 ? Math.min(4, Math.floor(Math.log10(n) / 3)) : 0;
    return `${number.format(n / 1000 ** power)} ${units[power]}`;
}
const micros = (us) => (us < 1000 ? `${number.format(us)} µs` : `${number.format(us / 1000)} ms`);
const newest = (series, format) => (series.at(-1) === null || series.at(-1) === undefined ? "–" : format(series.at(-1)));

const words = { ready: "Ready", loading: "Loading", recovering: "Recovering", lost: "Lost" };

/// A labelled number with its line.
function gauge(label) {
    const value = h("b");
    const spark = sparkline();
    return {
        element: h("div", { class: "gauge" }, h("span", {}, label), value, spark.svg),
        draw(text, series) {
            value.textContent = text;
            spark.draw(series, samples, `${label}: ${text}`);
        },
    };
}

class NodeCard {
    constructor() {
        this.name = h("h3");
        this.what = h("span", { class: "quiet" });
        this.memoryBar = h("meter", { min: 0 });
        this.memory = h("span");
        this.gauges = [gauge("Compute"), gauge("Network"), gauge("All-reduce p50, p99")];
        this.element = h("section", { class: "node" },
            h("div", { class: "head" }, h("i", { class: "dot" }), this.name, this.what),
            this.memoryRow = h("div", { class: "memory" }, h("span", {}, "Memory"), this.memory, this.memoryBar),
            h("div", { class: "gauges" }, ...this.gauges.map((g) => g.element)));
    }

    draw(node, alone) {
        const lost = node.state === "lost";
        this.element.classList.toggle("lost", lost);
        this.element.setAttribute("aria-label", `Node ${node.name}${lost ? ", lost" : ""}`);
        this.name.textContent = node.name;
        this.what.textContent = lost ? "lost" : [node.rank === 0 ? "root" : `rank ${node.rank}`, node.device].filter(Boolean).join(" · ");
        this.memoryRow.hidden = !node.memory_bytes;
        if (node.memory_bytes) {
            this.memory.textContent = node.memory_limit ? `${bytes(node.memory_bytes)} of ${bytes(node.memory_limit)}` : bytes(node.memory_bytes);
            this.memoryBar.hidden = !node.memory_limit;
            this.memoryBar.max = node.memory_limit || 1;
            this.memoryBar.value = node.memory_bytes;
            this.memoryBar.setAttribute("aria-label", `Memory of ${node.name}`);
        }
        const [compute, network, sync] = this.gauges;
        compute.draw(newest(node.compute, (share) => `${Math.round(share * 100)} %`), [node.compute]);
        network.element.hidden = sync.element.hidden = alone;
        network.draw(newest(node.bytes, (rate) => `${bytes(rate)}/s`), [node.bytes]);
        const p50 = newest(node.p50, micros);
        sync.draw(p50 === "–" ? p50 : `${p50}, ${newest(node.p99, micros)}`, [node.p50, node.p99]);
    }
}

/// Watches the cluster and draws `panel` when `button` opens it: each second while it is open, each fourth else.
export function startCluster(api, panel, button) {
    const model = new ClusterModel();
    const cards = new Map();
    const state = h("span", { class: "pill" });
    const speed = gauge("Tokens/s of all requests");
    const requests = h("p", { class: "quiet" });
    const nodes = h("div", { class: "nodes" });
    const events = h("ol", { class: "events" });
    const trouble = h("p", { class: "notice error", role: "alert", hidden: true });
    panel.append(
        h("div", { class: "bar" }, h("h2", {}, "Cluster"), state, iconButton("close", "Close the cluster view", () => toggle(false))),
        trouble, speed.element, requests, nodes, h("h3", {}, "Events"), events);

    function toggle(open) {
        panel.hidden = !open;
        button.setAttribute("aria-expanded", String(open));
        document.body.classList.toggle("cluster-open", open);
        if (open) poll();
        else button.focus();
    }
    button.addEventListener("click", () => toggle(panel.hidden));
    panel.addEventListener("keydown", (event) => { if (event.key === "Escape") { event.stopPropagation(); toggle(false); } });

    function drawButton() {
        const up = model.ordered().filter((node) => node.state !== "lost").length;
        button.dataset.state = model.state;
        const text = up > 1 ? `${up} nodes` : "Cluster";
        button.querySelector("span").textContent = model.state === "ready" ? text : words[model.state] ?? text;
        button.title = `Cluster: ${words[model.state] ?? model.state}`;
    }

    function draw() {
        drawButton();
        if (panel.hidden) return;
        const all = model.ordered();
        state.textContent = words[model.state] ?? model.state;
        state.dataset.state = model.state;
        speed.draw(newest(model.tokensPerSecond, (rate) => number.format(rate)), [model.tokensPerSecond]);
        const { running, waiting } = model.requests;
        requests.textContent = `${running} running, ${waiting} waiting`;
        for (const node of all) {
            if (!cards.has(node.name)) cards.set(node.name, new NodeCard());
            cards.get(node.name).draw(node, all.length === 1);
        }
        const elements = all.map((node) => cards.get(node.name).element);
        if (elements.some((element, i) => nodes.children[i] !== element)) nodes.replaceChildren(...elements);
        events.replaceChildren(...model.events.slice(0, 50).map((event) => h("li", { class: event.kind },
            h("time", { datetime: new Date(event.ms).toISOString() }, clock.format(event.ms)), h("span", {}, event.text))));
        events.previousElementSibling.hidden = !model.events.length;
    }

    let told = null;  // time of the newest event that was announced
    function announce() {
        const fresh = model.events.filter((event) => told !== null && event.ms > told);
        told = Math.max(told ?? 0, ...model.events.map((event) => event.ms));
        for (const event of fresh.reverse()) {
            if (panel.hidden) toast(event.text);
            else speak(event.text);
        }
    }

    let timer = 0;
    let asking = false;
    async function poll() {
        clearTimeout(timer);
        if (asking) return;
        asking = true;
        try {
            model.take(await api.get("/cluster"), performance.now());
            trouble.hidden = true;
            announce();
        } catch (error) {
            if (!(error instanceof ApiError)) throw error;
            trouble.textContent = `${error.message}. ${error.detail}`;
            trouble.hidden = false;
            model.state = error.kind === "loading" ? "loading" : "lost";
        } finally {
            asking = false;
            if (!document.hidden) timer = setTimeout(poll, panel.hidden ? 4000 : 1000);
        }
        draw();
    }
    document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
    poll();
}
