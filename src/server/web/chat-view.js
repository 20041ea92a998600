// The messages of the conversation that is shown. Knows nothing of the API: what a button means is said by `actions`.

import { h, icon, iconButton, copyFrom } from "./dom.js";
import { markdownView } from "./markdown.js";
import { path, siblings } from "./conversations.js";

const one = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
export const count = (n) => whole.format(n);

export function duration(seconds) {
    if (seconds < 0.1) return `${whole.format(seconds * 1000)} ms`;
    if (seconds < 10) return `${one.format(seconds)} s`;
    return seconds < 90 ? `${whole.format(seconds)} s` : `${whole.format(seconds / 60)} min`;
}

/// "18.2 tokens/s · 214 tokens · first after 0.3 s"
export function statsLine(stats) {
    if (!stats) return "";
    const parts = [];
    if (stats.tokensPerSecond) parts.push(`${one.format(stats.tokensPerSecond)} tokens/s`);
    if (stats.tokens) parts.push(`${count(stats.tokens)} tokens`);
    if (stats.firstTokenSeconds !== undefined) parts.push(`first after ${duration(stats.firstTokenSeconds)}`);
    return parts.join(" · ");
}

export class ChatView {
    /// actions: regenerate(node), edit(node, text), showSibling(node), openSettings(), suggest(text)
    constructor(list, scroller, toEnd, actions) {
        this.list = list;
        this.scroller = scroller;
        this.toEnd = toEnd;
        this.actions = actions;
        this.views = new Map();  // by node id: functions that draw the node anew
        this.stuck = true;       // at the end, and follows it
        scroller.addEventListener("scroll", () => {
            this.stuck = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
            toEnd.hidden = this.stuck;
        }, { passive: true });
        toEnd.addEventListener("click", () => this.scrollToEnd());
    }

    /// Shows a conversation; `welcome` is what stands there while it has no message.
    show(conversation, welcome) {
        this.conversation = conversation;
        this.views.clear();
        const nodes = path(conversation);
        this.list.replaceChildren(...(nodes.length ? nodes.map((node) => this.message(node)) : [welcome]));
        this.list.classList.toggle("empty", !nodes.length);
        this.scrollToEnd();
    }

    /// Draws a node anew if it is shown.
    update(node) {
        this.views.get(node.id)?.();
        if (this.stuck) this.scroller.scrollTop = this.scroller.scrollHeight;
    }

    scrollToEnd() {
        this.stuck = true;
        this.toEnd.hidden = true;
        this.scroller.scrollTop = this.scroller.scrollHeight;
    }

    message(node) {
        return node.role === "user" ? this.question(node) : this.answer(node);
    }

    /// ‹ 1/2 › where a question or an answer has others beside it.
    versions(node) {
        const all = siblings(this.conversation, node);
        if (all.length < 2) return null;
        const at = all.indexOf(node);
        const step = (label, name, by) => iconButton(name, label, () => this.actions.showSibling(all[at + by]),
            { disabled: !all[at + by] });
        return h("span", { class: "versions" }, step("Previous version", "left", -1), `${at + 1}/${all.length}`,
            step("Next version", "right", 1));
    }

    question(node) {
        const bubble = h("div", { class: "bubble" }, node.content);
        const copy = iconButton("copy", "Copy the question", () => copyFrom(copy, node.content));
        const edit = iconButton("edit", "Edit the question", () => this.editor(node, article, bubble));
        const article = h("article", { class: "message user", "aria-label": "Question", "data-id": node.id }, bubble,
            h("div", { class: "actions" }, this.versions(node), copy, edit));
        return article;
    }

    editor(node, article, bubble) {
        const area = h("textarea", { class: "edit", "aria-label": "Edit the question" });
        area.value = node.content;
        area.rows = Math.min(12, node.content.split("\n").length + 1);
        const close = () => { box.replaceWith(bubble); article.classList.remove("editing"); };
        const send = () => { if (area.value.trim()) this.actions.edit(node, area.value.trim()); };
        area.addEventListener("keydown", (event) => {
            if (event.isComposing) return;
            if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); send(); }
            if (event.key === "Escape") { event.stopPropagation(); close(); }
        });
        const box = h("div", { class: "editor" }, area, h("div", { class: "bar" },
            h("button", { type: "button", class: "plain", click: close }, "Cancel"),
            h("button", { type: "button", class: "primary", click: send }, "Send")));
        bubble.replaceWith(box);
        article.classList.add("editing");
        area.focus();
    }

    answer(node) {
        const thought = h("div", { class: "text" });
        const summary = h("span");
        const reasoning = h("details", { class: "reasoning", hidden: true }, h("summary", {}, icon("think"), summary), thought);
        const text = h("div", { class: "text" });
        const notice = h("div", { class: "notice", hidden: true });
        const stats = h("span", { class: "stats quiet" });
        const copy = iconButton("copy", "Copy the answer", () => copyFrom(copy, node.content));
        const again = iconButton("again", "Another answer", () => this.actions.regenerate(node));
        const actions = h("div", { class: "actions" }, copy, again, this.versions(node), stats);
        const article = h("article", { class: "message answer", "aria-label": "Answer", "data-id": node.id },
            reasoning, text, notice, actions);
        const updateThought = markdownView(thought);
        const updateText = markdownView(text);
        let drawn = [null, null, null];
        const draw = () => {
            const growing = node.state === "writing";
            article.classList.toggle("writing", growing);
            article.classList.toggle("waiting", growing && !node.content && !node.reasoning);
            article.classList.toggle("wordless", !node.content && !node.reasoning);
            article.setAttribute("aria-busy", String(growing));
            reasoning.hidden = !node.reasoning;
            const thinking = growing && node.reasoning && !node.content;
            reasoning.classList.toggle("thinking", Boolean(thinking));
            summary.textContent = thinking ? "Thinking…"
                : node.thoughtSeconds ? `Thought for ${duration(node.thoughtSeconds)}` : "Thought";
            // A folded thought is drawn when it is opened.
            if (reasoning.open && (drawn[0] !== node.reasoning || drawn[2] !== node.state)) {
                updateThought(node.reasoning, growing && !node.content);
                drawn[0] = node.reasoning;
            }
            if (drawn[1] !== node.content || drawn[2] !== node.state) updateText(node.content, growing);
            drawn[1] = node.content;
            drawn[2] = node.state;
            stats.textContent = growing ? (node.live ?? "") : statsLine(node.stats);
            this.drawNotice(node, notice);
        };
        reasoning.addEventListener("toggle", () => { drawn[0] = null; draw(); });
        this.views.set(node.id, draw);
        draw();
        return article;
    }

    drawNotice(node, notice) {
        const line = node.state === "failed" ? node.error.title
            : node.state === "stopped" ? "Stopped"
                : node.finish === "length" ? "The answer ends here: it has reached its limit of tokens or the end of the context" : "";
        notice.hidden = !line;
        if (!line) return;
        const failed = node.state === "failed";
        notice.className = failed ? "notice error" : "notice quiet";
        notice.setAttribute("role", failed ? "alert" : "note");
        notice.replaceChildren(h("strong", {}, line));
        if (!failed) return;
        if (node.error.detail) notice.append(h("p", {}, node.error.detail));
        notice.append(h("div", { class: "bar" },
            h("button", { type: "button", class: "plain", click: () => this.actions.regenerate(node) }, "Try again"),
            node.error.kind === "key"
                && h("button", { type: "button", class: "primary", click: () => this.actions.openSettings() }, "Enter the key")));
    }
}
